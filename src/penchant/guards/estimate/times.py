"""How long a run will take, from a few of its own passes: no weight or random number changes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.timing import seconds_of
from penchant.data.batch import laid_out
from penchant.data.source import StepBatch
from penchant.guards.estimate.sampling_times import SamplingTimes, probe_sampling
from penchant.models.memory import own_part
from penchant.training.kind import kind_of, make_objective
from penchant.training.optimizer import optimizer_of, random_state, set_random_state
from penchant.training.restoring import set_rates
from penchant.training.workload import Workload, count_work

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.training.setup import Setup

# Of the micro-batches by size: those whose passes are timed.
QUANTILES = (0.25, 0.9)
# Numbers of one matrix on which the optimizer's update is timed, at most.
NUM_UPDATED = 1 << 23


@dataclass(frozen=True)
class Times:
    """Seconds.

    Attributes:
        training: by part, as a run's `train_seconds` counts them.
        evaluation: of all evaluations, which that leaves out.
    """

    training: Mapping[str, float]
    evaluation: float


@dataclass(frozen=True)
class Line:
    """Seconds of a pass by its tokens."""

    fixed: float
    by_token: float

    def of(self, tokens: int) -> float:
        """Of one pass."""
        return self.fixed + self.by_token * tokens

    def total(self, work: Workload) -> float:
        """Of all passes of a run."""
        return self.fixed * work.num_passes + self.by_token * work.num_tokens


def fitted(points: Sequence[tuple[int, float]]) -> Line:
    """A line through (tokens, seconds), neither of whose coefficients is negative."""
    (few, quick), *_, (many, slow) = sorted(points)
    if many <= few or slow <= quick:
        return Line(0.0, sum(s for _, s in points) / sum(t for t, _ in points))
    by_token = (slow - quick) / (many - few)
    fixed = quick - by_token * few
    return Line(fixed, by_token) if fixed >= 0 else Line(0.0, slow / many)


def probe_times(
    config: RunConfig,
    setup: Setup,
    accelerator: Accelerator,
    num_processes: int = 1,
    parts: int = 1,
) -> Times:
    """Time passes, updates, and where answers are sampled these, and add up the run.

    Args:
        config, setup, accelerator: of the run.
        num_processes: that share it; the time of one of them is predicted.
        parts: into which these will divide the weights, each updating its own.
    """
    with untouched(setup):
        sampling = _sampling(config, setup, accelerator)
        length = None if sampling is None else sampling.answer_length
        work = count_work(
            config,
            setup.train_set,
            layout=setup.scorer.plan.layout,
            num_processes=num_processes,
            answer_length=length,
        )
        first, *points = _timed_passes(config, setup, accelerator, sampling)
        first_update, update = (seconds / parts for seconds in update_seconds(config, setup))
        evaluation = _evaluation_seconds(config, setup, accelerator, work, sampling)
    line = fitted(points)
    times = {
        "passes": line.total(work),
        # Kernels are chosen and memory is fetched at first; moments are made.
        "warm-up": max(0.0, first[1] - line.of(first[0])) + max(0.0, first_update - update),
        "updates": update * work.num_steps,
    }
    if sampling is not None:
        options: Any = config.options
        mini_batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
        mini_batch *= num_processes
        iterations = math.ceil(work.num_steps / options.steps_a_batch(mini_batch))
        rounds = sampling.of(config, math.ceil(options.batch_size / num_processes))
        times |= {name: seconds * iterations for name, seconds in rounds.items()}
    return Times(times, evaluation)


@contextmanager
def untouched(setup: Setup) -> Iterator[None]:
    """Put random states, gradients and the model's mode back afterwards."""
    torch_state, python_state = random_state(), random.getstate()
    gradients = {name: p.grad for name, p in setup.trained().items()}
    training = setup.scorer.training
    try:
        yield
    finally:
        for name, parameter in setup.trained().items():
            parameter.grad = gradients[name]
        setup.scorer.train(training)
        set_random_state(torch_state)
        random.setstate(python_state)


def update_seconds(config: RunConfig, setup: Setup) -> tuple[float, float]:
    """Clipping and the update, the first one and a later, on other tensors of the same make.

    One of each shape is timed, for all that have it: what Muon takes grows faster than a matrix.
    """
    first = later = 0.0
    for same in _by_shape(setup.trained().values()):
        slow, quick, share = _timed_update(config, setup, same[0])
        each = len(same) / share
        later += quick * each
        # What torchao compiles in its first step is compiled once for all of a shape.
        once = slow - quick
        first += quick * each + (once if config.rounds_stochastically else once * each)
    return first, later


def _by_shape(parameters: Iterable[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    groups: dict[Any, list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
    return list(groups.values())


def _timed_update(
    config: RunConfig, setup: Setup, trained: torch.nn.Parameter
) -> tuple[float, float, float]:
    """Seconds of an update of one parameter, the first and a later; what share of it they had."""
    own = own_part(trained.detach())
    if not own.numel():  # other processes have all of it
        return 0.0, 0.0, 1.0
    rows = max(1, min(len(own), NUM_UPDATED * len(own) // own.numel()))
    some = torch.nn.Parameter(torch.zeros_like(own[:rows]))
    optimizer = optimizer_of([some], config, setup.scorer, {id(some): id(trained)})
    set_rates(optimizer, [0.0] * len(optimizer.param_groups))

    def step() -> None:
        some.grad = torch.ones_like(some)
        torch.nn.utils.clip_grad_norm_([some], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    slow, *others = (seconds_of(step, some.device)[0] for _ in range(3))
    return slow, min(slow, *others), rows / len(own)


def _sampling(config: RunConfig, setup: Setup, accelerator: Accelerator) -> SamplingTimes | None:
    return probe_sampling(config, setup, accelerator) if config.spec.samples else None


def _timed_passes(
    config: RunConfig, setup: Setup, accelerator: Accelerator, sampling: SamplingTimes | None
) -> list[tuple[int, float]]:
    """(tokens, seconds) of forward and backward; the first is the run's very first pass."""
    objective = make_objective(config, accelerator, setup)
    setup.scorer.train()
    layout = setup.scorer.plan.layout
    trained = setup.trained().values()

    def take(examples: Sequence[Any]) -> None:
        batch = StepBatch(1, 0.0, [(list(examples), 1.0)], list(examples))
        with accelerator.autocast():
            shared = objective.prepare(setup.scorer, batch)
            output, _ = objective(setup.scorer, examples, shared)
        output.per_example.mean().backward()

    def size(examples: Sequence[Any]) -> int:
        return laid_out(kind_of(config.spec).laid_out(examples), layout=layout)

    every = _micro_batches(config, setup, accelerator, sampling)
    ordered = sorted(every, key=size)
    chosen = [ordered[round(q * (len(ordered) - 1))] for q in QUANTILES]
    _clear(trained)
    points = []
    for examples in (chosen[0], *chosen):
        # With accumulation gradients are added to those that are there.
        if config.gradient_accumulation_steps == 1 and config.max_tokens_per_batch is None:
            _clear(trained)
        seconds, _ = seconds_of(partial(take, examples), accelerator.device)
        points.append((size(examples), seconds))
    _clear(trained)
    return points


def _clear(parameters: Any) -> None:
    for parameter in parameters:
        parameter.grad = None


def _micro_batches(
    config: RunConfig, setup: Setup, accelerator: Accelerator, sampling: SamplingTimes | None
) -> list[list[Any]]:
    size = config.per_device_train_batch_size
    if sampling is not None:
        rollouts = sampling.rollouts
        budget = kind_of(config.spec).budget(config, setup.scorer.plan.layout)
        if budget is not None:
            return budget.divide(rollouts)
        return [list(rollouts[i : i + size]) for i in range(0, len(rollouts), size)]
    source = kind_of(config.spec).share(config, accelerator, setup)
    micro_batches: list[list[Any]] = []
    for step in source.steps():
        micro_batches += [examples for examples, weight in step.micro_batches if weight]
        if len(micro_batches) >= 256:
            break
    return micro_batches


def _evaluation_seconds(
    config: RunConfig,
    setup: Setup,
    accelerator: Accelerator,
    work: Workload,
    sampling: SamplingTimes | None,
) -> float:
    """Of all evaluations on the held-out records, in one of the processes that share them."""
    if not setup.eval_set:
        return 0.0
    times = int(config.eval_on_start) + 1
    if config.eval_steps:
        times += (work.num_steps - 1) // config.eval_steps
    if sampling is not None:
        # Fewer answers side by side take hardly less time.
        share = math.ceil(len(setup.eval_set) / work.num_processes)
        return times * sum(sampling.of(config, share).values())
    ordered = sorted(setup.eval_set, key=lambda e: e.group().num_tokens)
    size = config.per_device_eval_batch_size
    first = (len(ordered) - size) // 2 if len(ordered) > size else 0
    some = ordered[first : first + size]
    objective = make_objective(config, accelerator, setup)

    def evaluate() -> None:
        with accelerator.autocast():
            objective.evaluate(some, batch_size=size, progress=lambda items, _: items)

    seconds, _ = seconds_of(evaluate, accelerator.device)
    tokens = [sum(e.group().num_tokens for e in several) for several in (ordered, some)]
    return times * seconds * tokens[0] / tokens[1] / work.num_processes
