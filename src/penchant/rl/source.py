"""A source of batches that samples its own: rollouts, and the training passes over them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penchant.core.errors import RunFailedError
from penchant.core.machine import out_of_memory_explained
from penchant.data.source import StepBatch, visiting_order
from penchant.rl.findings import look_at, nothing_left, other_engine
from penchant.rl.rewards.spending import Spending
from penchant.rl.rollout import Rollout, make_rollouts
from penchant.rl.saving import pack_rollouts, unpack_rollouts

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.core.findings import Finding
    from penchant.data.budget import TokenBudget
    from penchant.data.tokenised import TokenisedPrompt
    from penchant.methods.experience import Advantages, Experience
    from penchant.methods.kl import KLController
    from penchant.rl.rollout import Collector, Judged

# Batches without anything to learn from, one after the other, after which a run gives up.
FRUITLESS = 10
SAMPLE_LESS = (
    "set a lower generation_batch_size, per_device_eval_batch_size or max_completion_length"
)


@dataclass(frozen=True)
class Schedule:
    """How many answers are sampled and how they are trained on.

    Attributes:
        batch_size: answers sampled at a time; a multiple of the mini-batch.
        num_generations: answers a prompt.
        epochs: training passes over them.
        micro_batch_size: answers per forward pass; accumulation: passes per step.
        num_steps: optimizer steps of the run.
        shuffle, seed: of the prompts and of the mini-batches.
        early_stopping_kl: sample again once the policy has moved so far, nats per token.
        log_completions: answers of each batch that are written down.
        max_gen_batches: how often prompts may be answered until a batch is full of groups that
            teach something; 1: whatever the first answers are.
    """

    batch_size: int
    num_generations: int
    epochs: int
    micro_batch_size: int
    accumulation: int
    num_steps: int
    shuffle: bool
    seed: int
    early_stopping_kl: float | None = None
    log_completions: int = 0
    max_gen_batches: int = 1


@dataclass
class RolloutSource:
    """Steps over rollouts that are sampled as they are needed.

    Args:
        prompts: at least one.
        collector: answers them.
        estimate: (experience, KL coefficient) to advantages.
        controller: of the KL coefficient.
        schedule: sizes and numbers.
        append: writes a record to a file of the run.
        say: is told a finding, of each id once.
    """

    prompts: Sequence[TokenisedPrompt]
    collector: Collector
    estimate: Callable[[Experience, float], Advantages]
    controller: KLController
    schedule: Schedule
    append: Callable[[str, Mapping[str, Any]], None]
    say: Callable[[int, Finding], None]
    rollouts: list[Rollout] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    totals: dict[str, float] = field(
        default_factory=lambda: {"episodes": 0.0, "generation_seconds": 0.0}
    )
    iteration: int = 0
    """Batches sampled so far."""
    num_answered: int = 0
    """Prompts that were answered."""
    position: int = 0
    """Mini-batches of the present rollouts that are done."""
    rebind: Callable[[Any], Callable[[Experience, float], Advantages]] | None = None
    """Options of the method to `estimate`."""
    budget: TokenBudget | None = None
    """Fills training passes by tokens in place of the schedule's `micro_batch_size`."""
    draws: Callable[[], str] | None = None
    """The name of the engine that draws the answers."""
    engine: str = ""
    """What drew the last answers, of an interrupted run too."""
    _order: tuple[int, list[int]] = (-1, [])
    foreseeable = False
    """What was learned from one step decides whether the next has the same answers."""

    def __post_init__(self) -> None:
        self.spending = Spending(self.collector.rewards, self.collector.team)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.schedule.num_steps

    def steps(self, done: int = 0) -> Iterator[StepBatch[Rollout]]:
        """The steps after the first `done`; those go on from the state that was loaded."""
        for step in range(done + 1, self.num_steps + 1):
            fruitless = 0
            while self.position >= self._num_mini_batches:
                num_batches = self._collect(step)
                fruitless += 0 if self.rollouts else num_batches
                if fruitless >= FRUITLESS:
                    self._give_up(step)
                    return
            chosen = self._mini_batch(self.position)
            self.position += 1
            yield StepBatch(
                step=step,
                epoch=self.num_answered / len(self.prompts),
                micro_batches=[
                    (some, float(counts))
                    for some, counts in self.collector.team.rounds(self._divided(chosen))
                ],
                examples=chosen,
                metrics=self.metrics,
                budget=self.budget,
            )

    def _divided(self, chosen: list[Rollout]) -> list[list[Rollout]]:
        if self.budget is not None:
            return self.budget.divide(chosen)
        size = self.schedule.micro_batch_size
        return [chosen[i : i + size] for i in range(0, len(chosen), size)]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """What the last step found: too far from the sampling policy, and it samples again."""
        limit = self.schedule.early_stopping_kl
        if limit is not None and metrics.get("policy/policykl", 0.0) > 1.5 * limit:
            self.position = self._num_mini_batches

    def discard(self) -> None:
        """Sample again: other weights have taken the place of those that answered."""
        self.position = self._num_mini_batches

    def reestimate(self, options: Any) -> None:
        """Estimate advantages with other options from now on."""
        assert self.rebind is not None
        self.estimate = self.rebind(options)

    @property
    def _num_groups(self) -> int:
        """Prompts of a batch."""
        return self.schedule.batch_size // self.schedule.num_generations

    @property
    def _step_size(self) -> int:
        one = self.schedule.micro_batch_size * self.schedule.accumulation
        return one * self.collector.team.size

    @property
    def _num_mini_batches(self) -> int:
        return -(-len(self.rollouts) // self._step_size) * self.schedule.epochs

    def _mini_batch(self, position: int) -> list[Rollout]:
        """Answers of one prompt stay side by side, so that it is laid out once."""
        a_pass = self._num_mini_batches // self.schedule.epochs
        epoch, within = divmod(position, a_pass)
        blocks: dict[int, list[Rollout]] = {}
        for rollout in self.rollouts:
            blocks.setdefault(rollout.number, []).append(rollout)
        order = list(blocks)
        random.Random(f"{self.schedule.seed} rollout {self.iteration} epoch {epoch}").shuffle(order)
        ordered = [rollout for number in order for rollout in blocks[number]]
        return ordered[within * self._step_size : (within + 1) * self._step_size]

    def _collect(self, step: int) -> int:
        """The next batch; returns how often prompts were answered for it."""
        judged, chosen, num_batches = self._refilled()
        self._note_engine(step)
        self.iteration += 1
        self.position, self.rollouts = 0, []
        self.metrics = {"iteration": float(self.iteration), **judged.metrics}
        if chosen.answers:
            estimate = self.estimate(chosen.experience, self.controller.value)
            self.metrics = {**estimate.metrics, **self.metrics}
            divergence = estimate.metrics.get("objective/kl")
            if divergence is not None:
                self.controller.update(divergence, len(chosen.answers))
            self.rollouts = make_rollouts(chosen, estimate)
        self._record(step, judged)
        return num_batches

    def _refilled(self) -> tuple[Judged, Judged, int]:
        """What was sampled, what of it is trained on, and how often prompts were answered."""
        if self.schedule.max_gen_batches == 1:
            judged = self._answer(self._num_groups, 0)
            return judged, judged, 1
        from penchant.rl.resampling import refill

        def estimate(experience: Experience) -> Advantages:
            return self.estimate(experience, self.controller.value)

        return refill(self._answer, estimate, self._num_groups, self.schedule.max_gen_batches)

    def _answer(self, count: int, first: int) -> Judged:
        """Answer the next prompts, which have numbers from `first` on within their batch."""
        start, seed = self.num_answered, self.schedule.seed + self.iteration
        prompts = [self.prompts[self._index(i)] for i in range(start, start + count)]
        with out_of_memory_explained("prompts were answered", SAMPLE_LESS):
            judged = self.collector.collect(prompts, seed, first)
        self.num_answered += count
        self.totals["episodes"] += count * self.schedule.num_generations
        self.totals["generation_seconds"] += judged.metrics["seconds/generation"]
        return judged

    def _note_engine(self, step: int) -> None:
        """Say it where another engine has drawn than before: `auto` asks for what there is."""
        if self.draws is None:
            return
        before, self.engine = self.engine, self.draws()
        if before not in ("", self.engine):
            self.say(step, other_engine(before, self.engine))

    def _record(self, step: int, judged: Judged) -> None:
        for finding in look_at(judged, self.metrics):
            self.say(step, finding)
        scores = judged.experience.scores.tolist() if judged.scores.raw else []
        shown = list(zip(judged.texts, judged.answers, strict=True))
        for i, (text, answer) in enumerate(shown[: self.schedule.log_completions]):
            record = {
                "step": step,
                "iteration": self.iteration,
                "prompt": answer.prompt.record.prompt,
                "completion": text,
                **({"reward": scores[i]} if scores else {}),
                "num_tokens": len(answer.completion.ids),
                "ended": answer.completion.ended,
            }
            self.append("rollouts.jsonl", record)

    def _give_up(self, step: int) -> None:
        """Nothing was left to train on: the end of the run, or of one that never began.

        Raises:
            RunFailedError: before the first step.
        """
        flat = self.metrics.get("reward/zero_variance", 1.0)
        finding = nothing_left(FRUITLESS, step - 1, flat)
        if step == 1:
            raise RunFailedError(f"{finding.what}; {finding.remedy}")
        self.say(step - 1, finding)

    def _index(self, visited: int) -> int:
        epoch, within = divmod(visited, len(self.prompts))
        if self._order[0] != epoch:
            blocks = [[i] for i in range(len(self.prompts))]
            schedule = self.schedule
            self._order = epoch, visiting_order(blocks, epoch, schedule.shuffle, schedule.seed)
        return self._order[1][within]

    def summary(self) -> dict[str, Any]:
        """What was sampled, how long that took, and what judges and services were asked."""
        asked = self.spending.described()
        totals = {"iterations": float(self.iteration), **self.totals}
        return {**totals, "asked": asked} if asked else totals

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that goes on: tensors, and what is JSON."""
        tensors, record = pack_rollouts(self.rollouts)
        return tensors, {
            "rollouts": record,
            "metrics": self.metrics,
            "totals": self.totals,
            "iteration": self.iteration,
            "num_answered": self.num_answered,
            "sampler_agrees": self.collector.agrees,
            "engine": self.engine,
            "position": self.position,
            "kl_coef": self.controller.value,
            "rewards": self.collector.rewards.state_dict(),
            "asked": self.spending.state(),
            **({} if self.budget is None else {"budget": self.budget.state()}),
        }

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.rollouts = unpack_rollouts(tensors, state["rollouts"])
        self.metrics, self.totals = dict(state["metrics"]), dict(state["totals"])
        self.iteration, self.position = state["iteration"], state["position"]
        self.collector.agrees = state.get("sampler_agrees", False)
        self.engine = state.get("engine", "")
        self.num_answered = state.get("num_answered", self.iteration * self._num_groups)
        self.controller.value = state["kl_coef"]
        self.collector.rewards.load_state_dict(state["rewards"])
        self.spending.load_state(state.get("asked", {}))
        if self.budget is not None:
            self.budget.load_state(state.get("budget", {}))
