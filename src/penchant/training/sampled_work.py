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


def answers_at_once(
    config: RunConfig, longest: int, num_processes: int = 1, num_held_out: int = 0
) -> tuple[int, int]:
    """Answers that a process samples side by side, and the tokens whose keys and values they keep.

    Args:
        config: of the run.
        longest: tokens of its longest pass.
        num_processes: of the run, which share the prompts of a batch, and those held out.
        num_held_out: prompts that are answered once each in an evaluation.
    """
    options: Any = config.options
    prompts = options.batch_size // options.generations
    asked = math.ceil(prompts / num_processes) * options.generations
    asked = max(asked, math.ceil(num_held_out / num_processes))
    side_by_side = min(options.generation_batch_size, asked)
    if options.generation.startswith("vllm"):
        side_by_side = 0  # the cache is in vLLM's own memory
    answer = config.prompt_budget + options.max_completion_length
    return side_by_side, side_by_side * min(answer, longest)


def sampled_passes(
    config: RunConfig,
    prompts: Sequence[Any],
    layout: Layout,
    answer_length: float | None,
    num_processes: int = 1,
) -> tuple[list[int], int, int, int]:
    """The training passes over one batch of answers, of the first process.

    Args:
        config: of the run.
        prompts: tokenised.
        layout: of its batches.
        answer_length: expected tokens of an answer; None: the longest.
        num_processes: of the run.

    Returns:
        The tokens of each pass, the steps that these are of, the tokens of the longest pass that
        may come, and those of them that are predicted.
    """
    options: Any = config.options
    longest = int(options.max_completion_length)
    limit = config.max_tokens_per_batch
    budget = limit if isinstance(limit, int) else None
    steps = answers_by_step(config, num_processes)
    # Passes that a budget fills are divided from a whole step.
    micro_batch = steps[0]
    if budget is None:
        micro_batch = min(micro_batch, config.per_device_train_batch_size)
    kind = kind_of(config.spec)
    groups = sorted(kind.groups(config, prompts), key=lambda group: -group.num_tokens)
    mean_prompt = sum(len(group.prompt) for group in groups) / len(groups)
    # Answers to one prompt are laid out after it together.
    shared = min(options.trained_generations, micro_batch)
    expected = longest if answer_length is None else answer_length
    by_answer = expected + mean_prompt / (shared if layout == "shared" else 1)
    num_groups = math.ceil(micro_batch / shared)
    peak = sum(len(g.prompt) for g in groups[:num_groups]) + micro_batch * longest
    if layout != "shared":
        peak = micro_batch * groups[0].num_tokens
    predicted = micro_batch * longest
    if budget is not None:
        peak = min(peak, max(budget, groups[0].num_tokens))
        predicted = min(predicted, peak)
    passes: list[float] = []
    for count in steps:
        whole, rest = divmod(count, micro_batch)
        passes += [micro_batch * by_answer] * whole + [rest * by_answer] * (rest > 0)
    if budget is not None:
        numbers = [math.ceil(tokens / budget) for tokens in passes]
        passes = [t / n for t, n in zip(passes, numbers, strict=True) for _ in range(n)]
    return [round(tokens) for tokens in passes], len(steps), peak, predicted


def answers_by_step(config: RunConfig, num_processes: int) -> list[int]:
    """Answers that the first process trains on in each step of one time through a batch.

    Args:
        config: of the run.
        num_processes: of the run.
    """
    options: Any = config.options
    step = config.per_device_train_batch_size * config.gradient_accumulation_steps * num_processes
    trained = options.num_trained
    counts = [min(step, trained - start) for start in range(0, trained, step)]
    return [math.ceil(count / num_processes) for count in counts]


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
