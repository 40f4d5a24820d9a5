"""What a run came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penchant.core.evaluation import Evaluation


@dataclass(frozen=True)
class TrainResult:
    """What a run came to; `summary.json` holds the same.

    Attributes:
        output: the run directory; `model` the folder with the tuned model or adapter.
        steps, train_seconds, examples_per_second, tokens_per_second: of the optimizer steps.
        memory_peak_bytes: of the process, or of the GPU's allocator; the most of all processes.
        before, after: held-out evaluation, where there are held-out pairs.
        best_step: of the best evaluation, where there were several.
    """

    output: Path
    model: Path
    steps: int
    train_seconds: float
    examples_per_second: float
    tokens_per_second: float
    memory_peak_bytes: int
    before: Evaluation | None
    after: Evaluation | None
    best_step: int | None

    def summary(self) -> dict[str, Any]:
        """For `summary.json`."""
        values = {**vars(self), "output": str(self.output), "model": str(self.model)}
        for name in ("before", "after"):
            evaluation = values.pop(name)
            values[f"evaluation_{name}"] = None if evaluation is None else asdict(evaluation)
        return values

    @classmethod
    def from_summary(cls, summary: dict[str, Any]) -> TrainResult:
        """The inverse of `summary`."""
        from penchant.core.evaluation import Evaluation

        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in summary.items() if name in known}
        for name in ("before", "after"):
            evaluation = summary[f"evaluation_{name}"]
            values[name] = None if evaluation is None else Evaluation(**evaluation)
        return cls(**{**values, "output": Path(values["output"]), "model": Path(values["model"])})
