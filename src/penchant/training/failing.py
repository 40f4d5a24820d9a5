"""Steps that cannot be taken, and runs that end before their time: what is said, and tried."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from penchant.core.errors import RunFailedError, RunInterrupted, TrainingError
from penchant.core.findings import Finding
from penchant.data.budget import KEY

if TYPE_CHECKING:
    import torch

    from penchant.data.source import StepBatch


def shorter(
    batch: StepBatch[Any],
    error: Exception,
    num_processes: int,
    say: Callable[[int, Finding], None],
) -> StepBatch[Any]:
    """The step, in whose passes memory ran out, divided by half the budget.

    Raises:
        TrainingError: an example alone is too long, or other processes wait in this pass.
    """
    assert batch.budget is not None
    largest = batch.budget.lower([some for some, _ in batch.micro_batches])
    limit, what = batch.budget.limit, f"memory ran out in passes of up to {largest} tokens"
    if num_processes > 1:
        raise TrainingError(
            f"{what} at step {batch.step}, and a pass cannot be repeated where several "
            f"processes wait for each other; set {KEY} {limit}"
        ) from error
    if len(batch.micro_batches) == batch.num_examples:
        raise TrainingError(
            f"{what} at step {batch.step}, each of one example: {error}; lower max_length, "
            "set gradient_checkpointing on, or quantization 4bit"
        ) from error
    done = f"{KEY} is {limit} from here on, and the step is made again"
    evidence = {"tokens": largest, KEY: limit}
    remedy = f"set {KEY} {limit} from the start, or gradient_checkpointing on"
    say(batch.step, Finding("out-of-memory", "warning", what, remedy, evidence, done))
    return batch.divided_again()


def what_takes_less(batch: StepBatch[Any]) -> str:
    """What to set so that a step takes less memory."""
    longest = max(sum(e.group().num_tokens for e in some) for some, _ in batch.micro_batches)
    return (
        f"set max_tokens_per_batch {max(1, longest // 2)} (half of its longest pass), "
        "gradient_checkpointing on, or a lower max_length"
    )


def not_finite(losses: Sequence[tuple[Sequence[Any], torch.Tensor]]) -> list[Any]:
    """The examples whose loss is not a finite number."""
    return [
        example
        for examples, some in losses
        for example, loss in zip(examples, some.tolist(), strict=True)
        if not math.isfinite(loss)
    ]


def fail(
    what: str, examples: Sequence[Any], step: int, say: Callable[[int, Finding], None]
) -> NoReturn:
    """Say what is not finite, and end.

    Raises:
        RunFailedError: always.
    """
    rows = ", ".join(e.where for e in examples[:8]) or "of another process"
    remedy = (
        "lower learning_rate, look at these records, or use precision bf16 or fp32 where it is fp16"
    )
    say(step, Finding("not-finite", "error", what, remedy, {"rows": rows}))
    raise RunFailedError(f"{what} is not finite at step {step} (records {rows}); {remedy}")


def interrupt(step: int, method: str, folder: Path) -> NoReturn:
    """End a run that has been saved after a step.

    Raises:
        RunInterrupted: always.
    """
    raise RunInterrupted(
        f"interrupted after step {step}, which is saved; go on with: penchant train {method} "
        f"--config {folder / 'config.yaml'} --resume"
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a lack of space; safetensors hides the number."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or f"os error {errno.ENOSPC}" in str(error)


def unsaved(step: int, folder: Path, kept: Sequence[int]) -> TrainingError:
    """That the disk was full when a checkpoint was written beside those that are kept."""
    intact = ", ".join(f"step-{one}" for one in kept) or "none"
    return TrainingError(
        f"the disk is full: checkpoint step-{step} could not be written to {folder} (checkpoints "
        f"that are intact: {intact}); free some space and run again with --resume"
    )
