"""The statistics of a step, under the names and by the formulas of TRL 0.11.4."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from penchant.core.errors import ConfigError
from penchant.methods import METHODS, LossOutput
from penchant.methods.experience import RolloutInputs
from penchant.methods.kl import kl_penalty
from penchant.methods.online import ratio_of

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.methods.experience import Experience
    from penchant.methods.ppo import PPOOptions

# A divergence that is negative beyond what chance allows has a cause.
NEGATIVE_KL = -1.0


@dataclass
class Passes:
    """The loss of the training passes, and what was seen in them.

    A pass counts as much as any other, however many tokens it has, as in TRL; Penchant's own
    loop averages over the tokens of an optimizer step.
    """

    seen: list[dict[str, float]] = field(default_factory=list)
    ratios: list[Tensor] = field(default_factory=list)
    advantages: list[Tensor] = field(default_factory=list)

    def clear(self) -> None:
        """Forget what was seen."""
        for column in (self.seen, self.ratios, self.advantages):
            column.clear()

    def loss(self, inputs: RolloutInputs, options: PPOOptions) -> LossOutput:
        """PPO's, over tokens that have an advantage; 0 where the mean ratio is out of bounds."""
        inputs = _with_advantages(inputs)
        output = METHODS["ppo"].loss(inputs, options)
        ratio = ratio_of((inputs.logprobs - inputs.old_logprobs).detach())
        if float(ratio.mean()) > options.ratio_threshold:
            cut = {n: v * 0.0 for n, v in output.metrics.items() if n.startswith("loss/")}
            output = LossOutput(output.per_example * 0.0, {**output.metrics, **cut})
        self.ratios.append(ratio.cpu())
        self.advantages.append(inputs.advantages.cpu())
        self.seen.append(_of_pass(inputs, output))
        return output

    def means(self) -> dict[str, Any]:
        """Means over the passes, and every token's ratio and advantage."""
        means = {name: float(np.mean([one[name] for one in self.seen])) for name in self.seen[0]}
        explained = 1 - means["val/error"] / means["returns/var"] if means["returns/var"] else 0.0
        return {
            **{f"ppo/{name}": value for name, value in means.items()},
            "ppo/val/var_explained": explained,
            "ppo/policy/ratio": torch.cat(self.ratios).numpy(),
            "ppo/policy/advantages": torch.cat(self.advantages).numpy(),
        }


def _with_advantages(inputs: RolloutInputs) -> RolloutInputs:
    """Without the tokens that are not learned from, whose advantage is NaN."""
    kept = ~inputs.advantages.isnan()
    columns = {
        field.name: value[kept]
        for field in fields(inputs)
        if isinstance(value := getattr(inputs, field.name), torch.Tensor)
        and field.name != "lengths"
    }
    lengths = torch.bincount(inputs.index[kept], minlength=len(inputs.lengths))
    return replace(inputs, **columns, lengths=lengths, mean_len=None, mean_good_len=None)


@torch.no_grad()
def _of_pass(inputs: RolloutInputs, output: LossOutput) -> dict[str, float]:
    assert inputs.returns is not None and inputs.values is not None
    assert inputs.old_values is not None
    statistics = {name: float(values.mean()) for name, values in output.metrics.items()}
    return {
        "loss/policy": statistics["loss/policy"],
        "loss/value": statistics["loss/value"],
        "loss/total": float(output.per_example.mean()),
        "policy/entropy": statistics["policy/entropy"],
        "policy/approxkl": statistics["policy/approxkl"],
        "policy/policykl": statistics["policy/policykl"],
        "policy/clipfrac": statistics["policy/clipfrac"],
        "policy/advantages_mean": float(inputs.advantages.mean()),
        "returns/mean": float(inputs.returns.mean()),
        "returns/var": _variance(inputs.returns),
        "val/vpred": float(inputs.values.mean()),
        "val/error": statistics["value/error"],
        "val/clipfrac": statistics["value/clipfrac"],
        "val/mean": float(inputs.old_values.mean()),
        "val/var": _variance(inputs.old_values),
    }


def _variance(values: Tensor) -> float:
    return float(values.var()) if len(values) > 1 else 0.0


def of_experience(
    experience: Experience, mask: Tensor, options: PPOOptions, kl_coef: float
) -> dict[str, Any]:
    """What was sampled.

    Args:
        experience: tokens outside of the mask cost nothing in it.
        mask: `[N]` bool, the tokens that are learned from.
        options: of the penalty.
        kl_coef: its weight.
    """
    assert experience.ref_logprobs is not None
    penalty = kl_penalty(
        options.kl_penalty, experience.logprobs, experience.ref_logprobs, experience.full_kl
    )
    sums = experience.sums(penalty)
    lengths = experience.lengths.tolist()
    return {
        "objective/kl": float(sums.mean()),
        "objective/kl_dist": sums.numpy(),
        "objective/logprobs": _rows(experience.logprobs, lengths),
        "objective/ref_logprobs": _rows(experience.ref_logprobs, lengths),
        "objective/kl_coef": kl_coef,
        "objective/entropy": float(experience.sums(-experience.logprobs * mask).mean()),
        "ppo/mean_non_score_reward": float((-kl_coef * penalty)[mask].mean()),
        "ppo/mean_scores": float(experience.scores.mean()),
        "ppo/std_scores": float(experience.scores.std()) if len(lengths) > 1 else 0.0,
    }


def cautions(statistics: Mapping[str, Any]) -> list[str]:
    """What a user should know of a step."""
    messages = []
    divergence = statistics["objective/kl"]
    if divergence < NEGATIVE_KL:
        messages.append(
            f"the divergence from the reference is {divergence:.2f} nats per answer; samples of "
            "the policy make it positive: draw them with trainer.generate, at their own "
            "temperature, and pass them whole"
        )
    return messages


def of_lengths(name: str, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Tokens of queries or responses."""
    lengths = np.array([len(row) for row in rows], dtype=np.float32)
    return {
        f"tokens/{name}_len_mean": float(lengths.mean()),
        f"tokens/{name}_len_std": float(lengths.std(ddof=1)) if len(rows) > 1 else 0.0,
        f"tokens/{name}_dist": lengths,
    }


def for_tracker(
    tracker: str,
    stats: Mapping[str, Any],
    batch: Mapping[str, Any],
    rewards: Sequence[float],
    columns: Sequence[str],
) -> dict[str, Any]:
    """What a tracker is sent of a step: its numbers, and wandb arrays and a table of texts too.

    Raises:
        ConfigError: the batch lacks one of `columns`, which wandb shows.
    """
    paid = np.array(rewards, dtype=np.float32)
    values: dict[str, Any] = {
        **stats,
        "env/reward_mean": float(paid.mean()),
        "env/reward_std": float(paid.std(ddof=1)) if len(paid) > 1 else 0.0,
        "env/reward_dist": paid,
    }
    if tracker != "wandb":
        return {n: float(v) for n, v in values.items() if isinstance(v, int | float)}
    if missing := [name for name in columns if name not in batch]:
        raise ConfigError(
            f"columns_to_log: the batch has no {', '.join(missing)}; it has {', '.join(batch)}"
        )
    wandb: Any = importlib.import_module("wandb")
    rows = [list(row) for row in zip(*(batch[name] for name in columns), rewards, strict=True)]
    return {**values, "game_log": wandb.Table(columns=[*columns, "reward"], rows=rows)}


def _rows(values: Tensor, lengths: list[int]) -> np.ndarray[Any, Any]:
    """`[B, longest]`, 0 after the end of a row."""
    return torch.nn.utils.rnn.pad_sequence(values.split(lengths), batch_first=True).numpy()
