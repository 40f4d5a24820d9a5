"""Sampling with transformers' continuous batching: paged attention on CUDA."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.errors import ConfigError, TrainingError
from penchant.rl.sampling.base import Completion, Draw, Sampling

if TYPE_CHECKING:
    from penchant.models.scoring import Scorer

# Tokens of a page of the cache, by default: kernels for paged attention ask for a multiple of 256.
PAGE = 256
# Tokens that are read in one pass: prompts, and one of each answer under way.
TOKENS_AT_ONCE = 2048
# The oldest that this was tried with.
OLDEST = (5, 20)


def require_continuous() -> None:
    """Refuse a transformers whose continuous batching is another one.

    Raises:
        ConfigError: it is too old.
    """
    found = version("transformers")
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise ConfigError(
            f"generation: continuous needs transformers {wanted} or later, got {found}; install "
            "it, or set generation to auto or cached"
        )


@dataclass
class ContinuousSampler:
    """Samples from a scorer's own model; answers that end make room for others at once.

    The cache and what manages it are kept from one batch to the next, and made again for longer
    answers, other settings, or more of them side by side.

    Args:
        scorer: the policy, on CUDA.
        end_token_ids: any of them ends an answer.
        batch_size: answers that are drawn side by side.
    """

    scorer: Scorer
    end_token_ids: Sequence[int]
    batch_size: int = 32
    _manager: Any = field(default=None, init=False)
    _made_for: tuple[Sampling, torch.dtype | None] | None = field(default=None, init=False)
    _room: int = field(default=0, init=False)
    """Tokens that one answer may have with its prompt."""
    _number: int = field(default=0, init=False)
    """Of the next request: none ever has the id of another one."""

    def sync(self) -> None:
        """The weights are the same objects, but what was read with the old ones is forgotten."""
        if self._manager is not None and self._manager.batch_processor is not None:
            self._manager.batch_processor.cache.reset()

    @torch.no_grad()
    def sample(self, prompts: Sequence[list[int]], draw: Draw) -> list[list[Completion]]:
        n = draw.n
        repeated = [list(prompt) for prompt in prompts for _ in range(n)]
        if not repeated:
            return []
        model: Any = self.scorer.causal_model
        devices = [model.device] if model.device.type == "cuda" else []
        with self.scorer.generating(), torch.random.fork_rng(devices):
            self._prepare(max(map(len, repeated)), draw.sampling)
            # The engine draws for all requests in turn: shares of the prompts must differ by seed.
            torch.manual_seed(draw.seed * 1_000_003 + draw.numbers_of(prompts)[0])
            rows, errors = self._answer(dict(enumerate(repeated)))
            if errors:  # once more: memory may have been short for a moment
                again, errors = self._answer({i: repeated[i] for i in errors})
                rows |= again
        if errors:
            number, error = next(iter(errors.items()))
            raise TrainingError(
                f"generation: continuous gave no answer to {len(errors)} of {len(repeated)} "
                f"requests, in two attempts; the first is prompt {number // n + 1} of "
                f"{len(prompts)} ({len(repeated[number])} tokens): {error}; set generation to "
                "cached, or a smaller generation_batch_size"
            )
        return [[rows[i * n + k] for k in range(n)] for i in range(len(prompts))]

    def _prepare(self, longest: int, sampling: Sampling) -> None:
        """Keep the manager, or make one that serves these requests."""
        model: Any = self.scorer.causal_model
        device, room = model.device.type, longest + sampling.max_completion_length
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if self._made_for == (sampling, dtype) and room <= self._room:
            self._manager.switch_to_cb_friendly_attn(model)
            return
        self._manager = None  # its cache is freed before there is another
        self._room, self._made_for = max(room, self._room), (sampling, dtype)
        self._manager = self._make(model, sampling)
        if dtype is not None:
            self._manager.model = _InPrecision(model, dtype)
        self._manager.warmup()  # makes the cache; seeds random numbers, before anybody draws any
        if dtype is not None:
            _rounding(self._manager.batch_processor.cache, dtype)

    def _make(self, model: Any, sampling: Sampling) -> Any:
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        settings = GenerationConfig(
            max_new_tokens=sampling.max_completion_length,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or 1.0,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            eos_token_id=list(self.end_token_ids),
            pad_token_id=self.scorer.pad_token_id,
        )
        batching = ContinuousBatchingConfig(
            num_blocks=self.batch_size * -(-self._room // PAGE) + 1,
            max_batch_tokens=max(TOKENS_AT_ONCE, self.batch_size),
            max_requests_per_batch=self.batch_size,
            return_logprobs=True,
            # A graph would go on reading what the last batch had: rounded weights, for one.
            use_cuda_graph=False,
            # The seed decides alone: no step may depend on what has arrived by then.
            use_async_batching=False,
        )
        return model.init_continuous_batching(settings, batching)

    def _answer(
        self, prompts: dict[int, list[int]]
    ) -> tuple[dict[int, Completion], dict[int, str]]:
        """Answers and errors of prompts, by their numbers."""
        manager = self._manager
        ids: dict[str, int] = {}
        # All requests wait before the first is begun, so that batches are the same every time.
        manager.background_thread_status.clear()
        for number, prompt in prompts.items():
            name, self._number = f"penchant-{self._number}", self._number + 1
            if manager.add_request(prompt, request_id=name) is not None:
                ids[name] = number
        outputs: dict[int, Any] = {}
        manager.start()
        try:
            while len(outputs) < len(ids):
                output = manager.get_result(timeout=1)
                if output is not None and output.is_finished():
                    if output.request_id in ids:
                        outputs[ids[output.request_id]] = output
                elif output is None and not manager.is_running():
                    break
        finally:
            # Not `stop`: it leaves the manager on the model, which could not be copied then.
            manager.background_thread_status.request_stop(
                manager.background_thread_status.FLUSH_AND_STOP, global_rank=0
            )
            manager.join(time.perf_counter())
        fatal = manager.background_thread_status.fatal_error
        ends = set(self.end_token_ids)
        rows: dict[int, Completion] = {}
        errors: dict[int, str] = {}
        for number in prompts:
            output = outputs.get(number)
            if output is None or output.error is not None or not output.generated_tokens:
                error = fatal if output is None or output.error is None else output.error
                errors[number] = str(error or "no answer")
            else:
                tokens = list(output.generated_tokens)
                rows[number] = Completion(tokens, list(output.logprobs), tokens[-1] in ends)
        return rows, errors


class _InPrecision:
    """A model as the generating thread calls it: autocast is a thread's own.

    Args:
        model: of transformers.
        dtype: of the autocast.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        with torch.autocast(self.model.device.type, self.dtype):
            return self.model(*args, **arguments)


def _rounding(cache: Any, dtype: torch.dtype) -> None:
    """Let a cache take keys and values in fp32 too, which norms and rotations may return."""
    own = cache.update

    def update(key_states: Any, value_states: Any, *rest: Any, **named: Any) -> Any:
        return own(key_states.to(dtype), value_states.to(dtype), *rest, **named)

    cache.update = update
