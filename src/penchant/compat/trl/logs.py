"""What a trainer reports, under TRL's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from penchant.training.result import TrainResult

NAMES = {
    "reward/chosen": "rewards/chosen",
    "reward/rejected": "rewards/rejected",
    "reward/margin": "rewards/margins",
    "reward/accuracy": "rewards/accuracies",
    "logprob/chosen": "logps/chosen",
    "logprob/rejected": "logps/rejected",
    "nll": "nll_loss",
}
# TRL's RewardTrainer has its own.
REWARD_NAMES = {**NAMES, "reward/margin": "margin", "reward/accuracy": "accuracy"}
# So have the trainers whose model answers by itself.
ONLINE_NAMES = {
    "reward/mean": "reward",
    "reward/std": "reward_std",
    "reward/zero_variance": "frac_reward_zero_std",
    "completion/length": "completions/mean_length",
    "loss/policy": "policy_loss",
    "logprob/sampling_difference": "sampling/sampling_logp_difference/mean",
    "logprob/sampling_difference_max": "sampling/sampling_logp_difference/max",
    "sampling/ratio": "sampling/importance_sampling_ratio/mean",
    "sampling/ratio_max": "sampling/importance_sampling_ratio/max",
}
# Of the rewards of all functions together; their names are not those of functions.
OF_ALL_REWARDS = ("dropped", "normalized/mean", "normalized/std", "disagreement")


class TrainOutput(NamedTuple):
    """What `train` returns.

    Attributes:
        global_step: optimizer steps.
        training_loss: mean of the losses in `state.log_history`.
        metrics: of the whole run.
    """

    global_step: int
    training_loss: float
    metrics: dict[str, float]


@dataclass
class TrainerState:
    """How far a trainer is.

    Attributes:
        global_step, epoch: optimizer steps and passes over the data.
        log_history: one entry a logged step or evaluation.
        best_global_step: of the best evaluation, where there were several.
    """

    global_step: int = 0
    epoch: float = 0.0
    log_history: list[dict[str, float]] = field(default_factory=list)
    best_global_step: int | None = None


def history(records: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The entries of `metrics.jsonl` under TRL's names."""
    return [_entry(record, names) for record in records]


def evaluation(metrics: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    """A held-out evaluation under TRL's names."""
    return {f"eval_{_renamed(name, names)}": value for name, value in metrics.items()}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    if name in names:
        return names[name]
    kind, _, function = name.partition("/")
    # What one of several reward functions gave on average.
    own = names is ONLINE_NAMES and kind == "reward" and function not in OF_ALL_REWARDS
    return f"rewards/{function}/mean" if own else name


def _entry(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    own = {k: v for k, v in record.items() if not k.startswith("eval/")}
    held_out = {k.removeprefix("eval/"): v for k, v in record.items() if k.startswith("eval/")}
    entry = {_renamed(name, names): value for name, value in own.items()}
    if own.keys() >= {"reward/chosen", "reward/rejected"} and "reward/margin" not in own:
        # Labels have no margins of their own.
        entry[names["reward/margin"]] = own["reward/chosen"] - own["reward/rejected"]
    if "completion/ended" in own and names is ONLINE_NAMES:
        entry["completions/clipped_ratio"] = 1 - own["completion/ended"]
    return {**entry, **evaluation(held_out, names)}


def outcome(
    result: TrainResult, records: Iterable[Mapping[str, Any]], names: Mapping[str, str]
) -> tuple[TrainerState, TrainOutput]:
    """What a trainer holds and returns after training.

    Args:
        result: of the run; records: of its metrics.
        names: TRL's, of metrics.
    """
    entries = history(records, names)
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    epoch = max((entry["epoch"] for entry in entries if "epoch" in entry), default=0.0)
    metrics = {
        "train_runtime": result.train_seconds,
        "train_samples_per_second": result.examples_per_second,
        "train_steps_per_second": result.steps / result.train_seconds,
        "train_loss": sum(losses) / len(losses),
        "epoch": epoch,
    }
    entries.append({"step": result.steps, **metrics})
    state = TrainerState(result.steps, epoch, entries, result.best_step)
    return state, TrainOutput(result.steps, metrics["train_loss"], metrics)
