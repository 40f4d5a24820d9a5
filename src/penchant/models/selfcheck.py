"""Choose how to score: the fastest way that agrees with a plain forward on real records."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING

import torch

from penchant.core.machine import out_of_memory_explained
from penchant.core.team import ALONE, Team
from penchant.data.batch import Group
from penchant.models.architecture import stateful_modules
from penchant.models.attention import layer_kinds, reaches
from penchant.models.linear import plain_layers
from penchant.models.scoring import PLAIN, Scorer, ScoringPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger("penchant")

# Largest tolerated difference from the plain forward, in nats per token. In half precision single
# tokens differ by what rounding does to their logits, so there it bounds the mean.
LARGEST = {torch.float64: 1e-8, torch.float32: 1e-4}
# Tokens on either side of a window's end, where the check goes beyond it.
BEYOND = 8
# On a GPU the compared row has at least so many positions: FlexAttention compiles another kernel
# for fewer than 128 of them than the one that trains.
LEAST_ROW = 256
# Kinds of layers, as configurations name them, that need no attention hook: what works on each
# position alone, and what carries a state (models/mixers.py).
WITHOUT_STATE = {"mlp", "moe", "dense", "sparse"}
STATEFUL = {"linear_attention", "conv", "hybrid"}
# The mean's bound: from fp32, so many times what the plain forward in half precision differs by,
# and a little; or where fp32 cannot be had, from that plain forward itself.
TIMES_PLAIN, NEGLIGIBLE, MEAN_IN_HALF = 2.0, 1e-3, 0.05

# Where memory runs out: the layouts that would be tried next need more of it, not less.
TWO_PASSES = (
    "two records were scored",
    "set a lower max_length, lora_r above 0, or a smaller model",
)


@dataclass(frozen=True)
class Expected:
    """Log-probs `[N]` of the first records by a plain forward.

    Attributes:
        own: in the run's precision.
        exact: in fp32, for a run in half precision where that could be had.
    """

    own: Tensor
    exact: Tensor | None

    @property
    def mean_in_half(self) -> float:
        """What half-precision log-probs may differ from the best that is known, on average."""
        if self.exact is None:
            return MEAN_IN_HALF
        return TIMES_PLAIN * (self.own - self.exact).abs().mean().item() + NEGLIGIBLE


def plan_scoring(
    scorer: Scorer,
    groups: Sequence[Group],
    *,
    attention: str,
    max_length: int,
    team: Team = ALONE,
) -> ScoringPlan:
    """Plan the scoring of a run and make the scorer use it.

    Every group goes through the model the plain way (a row for each completion, full logits) and
    through the fast one. Where these differ by more than the tolerance, the next kernel is tried,
    then one row with repeated prompts, then padded rows, with one warning. A head that is not
    served is run as it is, in any layout. A run in half precision is compared in fp32 first, where
    memory holds that: there no fault passes for rounding. Where something is trained, the fast way
    must also run backward.

    Args:
        scorer: with the model as it will run, inside the run's autocast.
        groups: the first records, one or two; one that goes beyond the model's windows is added
            where none of these does and the run's records may. On a GPU short ones are repeated.
        attention: `auto`, `sdpa`, `flex`, `varlen`, or `plain` for the padded layout.
        max_length: the longest sequence of the run, in tokens.
        team: all processes of the run call this; what cannot serve one of them, none takes.

    Raises:
        TrainingError: the device's memory does not hold one of the two passes, or the fast one
            failed where other processes may wait in it.
    """
    if attention == "auto":
        attention = "flex" if scorer.device.type == "cuda" else "sdpa"
    # Dropout would make any two passes differ.
    with scorer.evaluating(), torch.no_grad(), out_of_memory_explained(*TWO_PASSES):
        groups = [*groups, *_beyond_windows(scorer, groups, max_length)]
        if scorer.device.type == "cuda":
            groups = filled(groups)
        expected = Expected(_plain_forward(scorer, groups), exact_logprobs(scorer, groups, PLAIN))
        check = partial(_refusal, scorer, groups, expected, team)
        first, *others = plans = _plans(attention, fused_head=True)
        plan, reasons = first, [reason for reason in [check(first)] if reason]
        if reasons:
            if check(plans[-1]):  # the head is to blame, in any layout
                others = _plans(attention, fused_head=False)
            for plan in others:
                if not (reason := check(plan)):
                    break
                reasons.append(reason)
            else:
                plan = PLAIN
    plan = replace(plan, reason="; ".join(reasons))
    if reasons:
        logger.warning("%s: scoring is slower, not different", plan.describe())
    scorer.use(plan)
    return plan


def _plans(attention: str, *, fused_head: bool) -> list[ScoringPlan]:
    """The fastest first."""
    kernels = {"plain": [], "flex": ["flex", "varlen", "sdpa"], "varlen": ["varlen", "sdpa"]}
    plan = replace(PLAIN, fused_head=fused_head)
    packed = [
        replace(plan, packed=True, kernel=kernel) for kernel in kernels.get(attention, [attention])
    ]
    return [*packed, *([replace(plan, repeated=True)] if packed else []), plan]


def _beyond_windows(scorer: Scorer, groups: Sequence[Group], max_length: int) -> list[Group]:
    """A group that is longer than each window of the model, where no other is and one may come.

    Its first completion goes across the window's end, its second begins before it.
    """
    config = scorer.causal_model.config.get_text_config()
    sizes = [reach.window or reach.chunk or 0 for reach in reaches(config)]
    longest = max(len(group.prompt) + max(map(len, group.completions)) for group in groups)
    missed = [size for size in sizes if longest <= size < max_length]
    if not missed:
        return []
    own = [token for group in groups for token in (*group.prompt, *group.completions[0])]
    length = min(max_length, max(missed) + 2 * BEYOND)
    tokens = list(islice(cycle(own), length + BEYOND))
    begin = max(1, length - 3 * BEYOND)
    return [Group(tokens[:begin], (tokens[begin:length], tokens[begin + 1 : begin + 1 + BEYOND]))]


def filled(groups: Sequence[Group]) -> list[Group]:
    """The groups, over and over until their row has `LEAST_ROW` positions."""
    repeats = -(-LEAST_ROW // sum(group.num_tokens for group in groups))
    return [*groups] * max(1, repeats)


def _plain_forward(scorer: Scorer, groups: Sequence[Group]) -> Tensor:
    scorer.use(PLAIN)
    singles = [Group(group.prompt, (c,)) for group in groups for c in group.completions]
    with plain_layers():
        return torch.cat([scorer(scorer.batch([single])) for single in singles])


def _refusal(
    scorer: Scorer, groups: Sequence[Group], expected: Expected, team: Team, plan: ScoringPlan
) -> str:
    """Why a plan cannot be used, if so: the same in all processes."""
    trained = any(p.requires_grad for p in scorer.parameters())
    if plan.packed and (reason := unservable(scorer.causal_model, trained=trained)):
        return reason
    if plan.repeated and unknown_layers(scorer.causal_model):
        return "such layers need a row for each text"
    scorer.use(plan)
    reason = next(filter(None, team.gather(_disagreement(scorer, groups, expected, team))), "")
    if reason and plan.packed:
        from penchant.models.layers import first_difference

        reason += first_difference(scorer, groups)
    return reason


def _disagreement(scorer: Scorer, groups: Sequence[Group], expected: Expected, team: Team) -> str:
    """Why the scorer's plan cannot serve this process; empty where it can."""
    layout = "packed" if scorer.plan.packed else scorer.plan.layout
    name = scorer.plan.kernel if scorer.plan.packed else scorer.plan.layout
    limit, half = tolerance(scorer)
    if expected.exact is not None:
        exact = exact_logprobs(scorer, groups, scorer.plan)
        if exact is not None:
            largest = (exact - expected.exact).abs().max().item()
            if not largest <= LARGEST[torch.float32]:  # also true for NaN
                return (
                    f"{layout} log-probs differ from a plain forward: in fp32, largest "
                    f"{largest:.2g} nats per token"
                )
        limit = expected.mean_in_half
    trained = [p for p in scorer.parameters() if p.requires_grad]
    try:
        with torch.set_grad_enabled(bool(trained)):
            logprobs = scorer(scorer.batch(groups))
            if trained:  # a kernel may compile forward and fail backward
                _run_backward(scorer, logprobs.sum(), trained)
    except torch.OutOfMemoryError:  # a RuntimeError, but no disagreement
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        said = f"{type(error).__name__} in the {name} pass: {error}"
        if scorer.is_sharded and team.size > 1:
            from penchant.models.sharding import out_of_step

            raise out_of_step(team, said) from error
        return said
    best = expected.own if expected.exact is None else expected.exact
    difference = (logprobs.detach() - best).abs()
    measured = difference.mean().item() if half else difference.max().item()
    if measured <= limit:  # also false for NaN
        return ""
    kind = f"mean {measured:.2g}" if half else f"largest {measured:.2g}"
    return f"{layout} log-probs differ from a plain forward: {kind} nats per token"


def _run_backward(scorer: Scorer, loss: Tensor, trained: Sequence[Tensor]) -> None:
    """A backward pass of which no gradient stays."""
    if not scorer.is_sharded:
        torch.autograd.grad(loss, trained, allow_unused=True)
        return
    loss.backward()  # the weights that took part are others than those of this process
    scorer.zero_grad()


def exact_logprobs(scorer: Scorer, groups: Sequence[Group], plan: ScoringPlan) -> Tensor | None:
    """Log-probs `[N]` as `plan` says, of a run in half precision in fp32, where that can be had.

    None for a run that is not in half precision.
    """
    if not tolerance(scorer)[1]:
        return None
    from penchant.models.exact import exactly

    def compute() -> Tensor:
        if plan == PLAIN:
            return _plain_forward(scorer, groups)
        scorer.use(plan)
        return scorer(scorer.batch(groups))

    return exactly(scorer, compute, plan.describe())


def tolerance(scorer: Scorer) -> tuple[float, bool]:
    """Nats per token that two passes may differ by, and whether that bounds the mean only."""
    dtype, device = scorer.causal_model.dtype, scorer.device.type
    half = torch.is_autocast_enabled(device) or dtype not in LARGEST
    return (MEAN_IN_HALF if half else LARGEST[dtype]), half


def unservable(model: PreTrainedModel, *, trained: bool) -> str:
    """What the attention hook cannot do for this model, if anything; weights are not looked at."""
    if other := unknown_layers(model):
        return f"layers that the attention hook cannot serve: {', '.join(other)}"
    config = model.config.get_text_config()
    # The check itself runs without dropout and would not see it.
    if trained and (name := attention_dropout(config)):
        return f"attention dropout is on; set {name} to 0 in the model's config"
    return ""


def unknown_layers(model: PreTrainedModel) -> list[str]:
    """The kinds of layers that are not known here, as those that pick or compress their keys.

    Nor may texts stand in one row for them, each with its prompt: what they pick may be of others.
    """
    served = {"full_attention", "sliding_attention", "chunked_attention"} | WITHOUT_STATE
    if stateful_modules(model):
        served |= STATEFUL
    return sorted(set(layer_kinds(model.config.get_text_config())) - served)


def attention_dropout(config: PretrainedConfig) -> str:
    """The setting that switches dropout of attention weights on, if any does."""
    for name, value in config.to_dict().items():
        if "att" in name and "drop" in name and isinstance(value, float) and value > 0:
            return name
    return ""
