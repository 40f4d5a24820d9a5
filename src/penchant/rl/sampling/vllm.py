"""Sampling with vLLM in the same process: the policy's weights are handed over as they change."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from penchant.models.merging import effective_weights
from penchant.rl.sampling.sampler import Completion, Sampling

if TYPE_CHECKING:
    from penchant.models.scoring import Scorer


@dataclass
class VllmSampler:
    """Draws from a `vllm.LLM` that follows the policy: by adapter, or by all weights.

    Args:
        engine: the `vllm.LLM`.
        policy: whose weights are handed over.
        end_token_ids: any of them ends an answer.
        make_parameters: `vllm.SamplingParams`.
        make_adapter: `vllm.lora.request.LoRARequest`; None hands over all weights instead.
    """

    engine: Any
    policy: Scorer
    end_token_ids: Sequence[int]
    make_parameters: Any
    make_adapter: Any = None
    version: int = 0
    """How often weights were handed over."""
    _folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    @classmethod
    def start(cls, policy: Scorer, name: str, end_token_ids: Sequence[int]) -> VllmSampler:
        """Load the model into vLLM beside the policy.

        Args:
            policy: with an adapter, or trained as a whole.
            name: the resolved name of its model.
            end_token_ids: any of them ends an answer.
        """
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found,unused-ignore]
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found,unused-ignore]

        adapted = isinstance(policy.model, PeftModel)
        rank = policy.model.peft_config["default"].r if adapted else 16  # type: ignore[union-attr]
        engine = LLM(
            name,
            dtype=str(policy.causal_model.dtype).removeprefix("torch."),
            enable_lora=adapted,
            max_lora_rank=max(8, rank),
            gpu_memory_utilization=0.3,
            enforce_eager=False,
        )
        return cls(engine, policy, end_token_ids, SamplingParams, LoRARequest if adapted else None)

    def sync(self) -> None:
        """Hand the present weights over; what was cached under the old ones is forgotten."""
        self.version += 1
        if self.make_adapter is not None:
            model: Any = self.policy.model
            model.save_pretrained(self._adapter, selected_adapters=["default"])
        else:
            weights = list(effective_weights(self.policy))
            executor = self.engine.llm_engine.model_executor
            executor.driver_worker.model_runner.model.load_weights(weights)
        self.engine.reset_prefix_cache()

    @property
    def _adapter(self) -> Path:
        # vLLM knows adapters by number and keeps them: each version is one of its own.
        return Path(self._folder.name) / str(self.version)

    def sample(
        self,
        prompts: Sequence[list[int]],
        *,
        n: int,
        sampling: Sampling,
        seed: int,
        numbers: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        parameters = self.make_parameters(
            n=n,
            temperature=sampling.temperature,
            top_k=sampling.top_k or -1,
            top_p=sampling.top_p,
            max_tokens=sampling.max_completion_length,
            stop_token_ids=list(self.end_token_ids),
            logprobs=0,
            seed=seed + 1_000_003 * (numbers[0] if numbers else 0),
            skip_special_tokens=False,
        )
        adapter = None
        if self.make_adapter is not None:
            adapter = self.make_adapter(f"policy-{self.version}", self.version, str(self._adapter))
        outputs = self.engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            parameters,
            lora_request=adapter,
            use_tqdm=False,
        )
        return [[self._completion(one) for one in output.outputs] for output in outputs]

    def _completion(self, output: Any) -> Completion:
        ids = list(output.token_ids)
        logprobs = [
            float(step[token].logprob)
            for token, step in zip(ids, output.logprobs or [], strict=False)
        ]
        return Completion(ids, logprobs, ids[-1] in set(self.end_token_ids))
