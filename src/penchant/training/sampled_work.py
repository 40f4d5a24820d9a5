"""What a run that samples its answers computes, and what it keeps in memory to sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penchant.rl.sampling.automatic import engines_of
from penchant.training.kind import kind_of

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.data.batch import Layout


def answers_at_once(config: RunConfig, longest: int) -> tuple[int, int]:
    """Answers that are sampled side by side, and the tokens whose keys and values they keep.

    Args:
        config: of the run.
        longest: tokens of its longest pass.
    """
    options: Any = config.options
    side_by_side = min(options.generation_batch_size, options.batch_size)
    if options.generation.startswith("vllm"):
        side_by_side = 0  # the cache is in vLLM's own memory
    answer = config.prompt_budget + options.max_completion_length
    return side_by_side, side_by_side * min(answer, longest)


def sampled_passes(
    config: RunConfig, prompts: Sequence[Any], layout: Layout, answer_length: float | None
) -> tuple[list[int], int, int]:
    """The passes of a step, in tokens, the longest that may come, and its predicted tokens.

    Args:
        config: of the run.
        prompts: tokenised.
        layout: of its batches.
        answer_length: expected tokens of an answer; None: the longest.
    """
    options: Any = config.options
    longest = int(options.max_completion_length)
    micro_batch, num_passes = config.per_device_train_batch_size, config.gradient_accumulation_steps
    limit = config.max_tokens_per_batch
    budget = limit if isinstance(limit, int) else None
    if budget is not None:  # of a whole step first
        micro_batch, num_passes = micro_batch * num_passes, 1
    kind = kind_of(config.spec)
    groups = sorted(kind.groups(config, prompts), key=lambda group: -group.num_tokens)
    mean_prompt = sum(len(group.prompt) for group in groups) / len(groups)
    # Answers to one prompt are laid out after it together.
    shared = min(options.trained_generations, micro_batch)
    expected = longest if answer_length is None else answer_length
    mean = micro_batch * (expected + mean_prompt / (shared if layout == "shared" else 1))
    num_groups = math.ceil(micro_batch / shared)
    peak = sum(len(g.prompt) for g in groups[:num_groups]) + micro_batch * longest
    if layout != "shared":
        peak = micro_batch * groups[0].num_tokens
    predicted = micro_batch * longest
    if budget is not None:
        peak = min(peak, max(budget, groups[0].num_tokens))
        predicted = min(predicted, peak)
        num_passes = math.ceil(mean / budget)
    passes = [round(mean / num_passes if budget else mean)] * num_passes
    return passes, peak, predicted


def engine_bytes(config: RunConfig, total: float, device: str, num_processes: int = 1) -> float:
    """What vLLM takes of the device beside the run, once it has started in this process.

    Args:
        config: of the run.
        total: bytes of the device.
        device: its kind; num_processes: of the run.
    """
    options: Any = config.options
    first, *_ = engines_of(
        options.generation,
        device,
        num_processes=num_processes,
        quantised=config.quantization != "none",
    )
    return options.vllm_gpu_memory_utilization * total if first == "vllm" else 0.0
