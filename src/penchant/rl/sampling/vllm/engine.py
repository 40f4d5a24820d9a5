"""vLLM's engine in this process: it follows the policy by adapter, or by all weights."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from penchant.rl.sampling.base import Completion, Draw
from penchant.rl.sampling.vllm.weights import HandedWeights, base_of

if TYPE_CHECKING:
    from penchant.models.scoring import Scorer

# The engine core runs in this process, as its callers must otherwise guard their main module; on
# a CPU it would bind the process's threads to cores.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class EngineSettings:
    """What `vllm.LLM` is started with, by its own names.

    Attributes:
        max_model_len: longest prompt with its answer, in tokens.
        dtype: of weights and cache: float32, bfloat16 or float16.
        gpu_memory_utilization: share of the device's memory that the engine takes.
        tensor_parallel_size: GPUs that share each layer.
        enable_sleep_mode: whether the engine gives its memory back between two batches.
        max_num_seqs: answers drawn together.
        trust_remote_code: run code that comes with the model.
    """

    max_model_len: int
    dtype: str
    gpu_memory_utilization: float = 0.3
    tensor_parallel_size: int = 1
    enable_sleep_mode: bool = False
    max_num_seqs: int = 32
    trust_remote_code: bool = False


@dataclass
class VllmSampler:
    """Draws from a `vllm.LLM`.

    Args:
        engine: the `vllm.LLM`.
        weights: of the policy, which the engine is given as they change.
        end_token_ids: any of them ends an answer.
        sleeps: whether the engine gives its memory back after each batch.
    """

    engine: Any
    weights: HandedWeights
    end_token_ids: Sequence[int]
    sleeps: bool = False

    @classmethod
    def start(
        cls, policy: Scorer, name: str, end_token_ids: Sequence[int], settings: EngineSettings
    ) -> VllmSampler:
        """Load the model into vLLM beside the policy.

        Args:
            policy: with an adapter, or trained as a whole.
            name: the resolved name of its model.
            end_token_ids: any of them ends an answer.
            settings: of the engine.
        """
        weights = HandedWeights(policy, name)
        with _process_as_it_was():
            from vllm import LLM  # type: ignore[import-not-found,unused-ignore]

            engine = LLM(
                base_of(name),
                skip_tokenizer_init=True,
                **asdict(settings),
                enable_lora=weights.rank is not None,
                max_lora_rank=weights.rank or 16,
                # Otherwise log-probs are taken before temperature and filters, and what the
                # model's generation_config.json asks for fills what is left open.
                logprobs_mode="processed_logprobs",
                generation_config="vllm",
                enforce_eager=policy.causal_model.device.type == "cpu",
            )
        return cls(engine, weights, end_token_ids, settings.enable_sleep_mode)

    def sync(self) -> None:
        """Hand the present weights over; what was cached under the old ones is forgotten."""
        if self.sleeps and self.weights.version:
            self.engine.wake_up()
        before, folder = self.weights.version, self.weights.write()
        if self.weights.rank is None:
            self.engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            self.engine.collective_rpc(_pack_head)
        elif before:
            self.engine.llm_engine.remove_lora(before)
        self.engine.reset_prefix_cache()

    def sample(self, prompts: Sequence[list[int]], draw: Draw) -> list[list[Completion]]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found,unused-ignore]

        asked = (request(draw, self.end_token_ids, i) for i in draw.numbers_of(prompts))
        parameters = [SamplingParams(**one, detokenize=False) for one in asked]
        adapter = None
        if self.weights.rank is not None:
            # vLLM knows adapters by number and keeps them: each version has one of its own.
            version, folder = self.weights.version, str(self.weights.folder)
            adapter = LoRARequest(self.weights.label, version, folder)
        device = self.weights.policy.causal_model.device.type
        # The run's half precision is for the policy's passes: the engine has its own.
        with torch.autocast(device, enabled=False):
            outputs = self.engine.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                parameters,
                lora_request=adapter,
                use_tqdm=False,
            )
        if self.sleeps:
            self.engine.sleep(level=2 if adapter is None else 1)  # 2 forgets the weights as well
        return [[self._completion(one) for one in output.outputs] for output in outputs]

    def _completion(self, output: Any) -> Completion:
        ids = list(output.token_ids)
        drawn = zip(ids, output.logprobs, strict=True)
        logprobs = [float(step[token].logprob) for token, step in drawn]
        return Completion(ids, logprobs, ids[-1] in self.end_token_ids)


def request(draw: Draw, ends: Sequence[int], number: int) -> dict[str, Any]:
    """What one prompt is asked with: everything that changes the distribution is named.

    Args:
        draw: what is drawn.
        ends: any of them ends an answer, and no other token does.
        number: of the prompt.
    """
    sampling = draw.sampling
    return {
        "n": draw.n,
        # Of the first answer; vLLM gives each of the others the next number.
        "seed": answer_seed(draw.seed, number),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": 0.0,
        "max_tokens": sampling.max_completion_length,
        "stop_token_ids": list(ends),
        "ignore_eos": True,
        "logprobs": 0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "skip_special_tokens": False,
    }


def answer_seed(seed: int, prompt: int) -> int:
    """The seed of a prompt's first answer, far from those of its neighbours' answers."""
    return random.Random(f"{seed} {prompt}").getrandbits(48)


def _pack_head(worker: Any) -> None:
    """Pack the head of vLLM's model again, in the engine's process.

    On a CPU vLLM 0.32 multiplies with a packed copy, and of a head that shares its weights with
    the embedding it keeps the copy of the weights before.
    """
    for module in worker.get_model().modules():
        if hasattr(module, "cpu_linear") and hasattr(module, "tie_weights"):
            module.quant_method.process_weights_after_loading(module)


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Random numbers, threads and environment of this process, which vLLM's engine sets again."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    states = random.getstate(), np.random.get_state()
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    os.environ.update(ENVIRONMENT)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_num_threads = set_threads  # on a CPU vLLM puts a refusal in its place
        torch.set_num_threads(threads)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
