"""A run put back to one of its checkpoints: all of it, its weights and moments, or its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.atomic import write_atomically
from penchant.core.errors import TrainingError
from penchant.core.strict_json import to_json
from penchant.training.checkpoint import named
from penchant.training.checkpoint_reading import (
    fill,
    newest_checkpoint,
    read_part,
    saved_shapes,
    verify_checkpoint,
)
from penchant.training.engine import Progress
from penchant.training.folder import LINES
from penchant.training.optimizer import parts_of, set_random_state

if TYPE_CHECKING:
    from penchant.core.team import Team
    from penchant.training.checkpoint import Checkpoints
    from penchant.training.engine import Engine
    from penchant.training.folder import RunDirectory

logger = logging.getLogger("penchant")


def resume(engine: Engine) -> None:
    """Go on from the newest sound checkpoint, if there is one."""
    extra = _restore(engine.checkpoints)
    # All that the run needs is there: only now a complete one is taken up again.
    engine.run.reopen()
    if extra is None:
        rewind(engine.run, -1)
        logger.info("no checkpoint in %s: starting from the first step", engine.run.path)
        return
    saved = dict(extra["progress"])
    saved["best"] = tuple(saved["best"]) if saved["best"] else None
    engine.progress = Progress(**saved)
    rewind(engine.run, engine.progress.step)
    if engine.guard is not None and "guard" in extra:
        engine.guard.load_state(extra["guard"])
    logger.info("resumed from step %d of %s", engine.progress.step, engine.run.path)


def rewind(run: RunDirectory, step: int) -> None:
    """Forget what was logged after `step`, which will be done again."""
    for file in LINES:
        kept = [record for record in run.read(file) if record.get("step", 0) <= step]
        if run.team.leads and (run.path / file).exists():
            lines = (to_json(record) + "\n" for record in kept)
            write_atomically(run.path / file, "".join(lines))


def _restore(checkpoints: Checkpoints) -> dict[str, Any] | None:
    """Put the newest sound checkpoint back; returns its record, or None without one."""
    newest = newest_checkpoint(checkpoints.folder, checkpoints.team)
    if newest is None:
        return None
    number, record = newest
    read, step = partial(read_part, checkpoints.folder, number), checkpoints.step
    if start := checkpoints.start:
        from penchant.models.adapter_starts import other_start

        # The first process gives all others its weights.
        if reason := checkpoints.team.agree(other_start(read("start"), start)):
            raise TrainingError(reason)
    fill(checkpoints.folder, number, checkpoints.weights())
    _load_moments(checkpoints, number)
    scheduler, scaler = step.scheduler, step.accelerator.scaler
    scheduler.load_state_dict(record["scheduler"])
    set_rates(step.optimizer, _present_rates(scheduler))
    if scaler is not None and record["scaler"]:
        scaler.load_state_dict(record["scaler"])
    set_random_states(read("random"), checkpoints.team, number)
    checkpoints.source.load_state(read("source"), record["source"])
    if checkpoints.kept is not None:
        checkpoints.kept.load_state(read("reference"))
    return record


def _present_rates(scheduler: Any) -> list[float]:
    """The rates of the next step, which a schedule gives to the optimizer only when it steps.

    Those that were saved are of a run of the saved length: this one may go further.
    """
    factors = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    scheduler._last_lr = [base * factor(scheduler.last_epoch) for base, factor in factors]
    return scheduler.get_last_lr()


def load_best(engine: Engine) -> int:
    """Put the weights of the best evaluation back; returns the step they are of."""
    best, last = engine.progress.best_step, engine.progress.step
    if best is None or best == last:
        return last
    try:
        _load_weights(engine.checkpoints, best)
    except TrainingError as error:
        logger.warning("%s; the weights of the last step are kept instead", error)
        return last
    return best


def roll_back(checkpoints: Checkpoints, number: int) -> None:
    """Go on from the weights and moments of a checkpoint, with the batches that come next.

    Raises:
        TrainingError: it is missing or corrupt.
    """
    _load_weights(checkpoints, number)
    _load_moments(checkpoints, number)
    checkpoints.source.discard()


def _load_weights(checkpoints: Checkpoints, number: int) -> None:
    verify_checkpoint(checkpoints.folder, number, checkpoints.team)
    fill(checkpoints.folder, number, checkpoints.weights())


def _load_moments(checkpoints: Checkpoints, number: int) -> None:
    prefix = "optimizer/"
    names = saved_shapes(checkpoints.folder, number)
    saved = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}

    def put(places: Mapping[str, torch.Tensor]) -> None:
        fill(checkpoints.folder, number, named("optimizer", places))

    load_optimizer(checkpoints.step.optimizer.optimizer, checkpoints.trained, saved, put)


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, torch.nn.Parameter],
    saved: Collection[str],
    fill: Callable[[dict[str, torch.Tensor]], None],
) -> None:
    """The inverse of `optimizer_tensors`: what was not saved starts from nothing.

    The optimizer makes its state as in a first step, of gradients of 0 at a rate of 0, so that
    each tensor is of the kind and in the place that it wants; then the saved values go there.

    Args:
        optimizer: of the parameters; parameters: by name.
        saved: the names that `optimizer_tensors` gave.
        fill: copies the saved values into tensors, by those names.
    """
    names = {path.partition("/")[0] for path in saved}
    optimizer.state.clear()
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    gradients = {name: p.grad for name, p in parameters.items()}
    for name, parameter in parameters.items():
        parameter.grad = torch.zeros_like(parameter) if name in names else None
    set_rates(optimizer, [0.0] * len(rates))
    optimizer.step()
    set_rates(optimizer, rates)
    places: dict[str, torch.Tensor] = {}
    numbers: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    for name, parameter in parameters.items():
        parameter.grad = gradients[name]
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            for path, tensor in parts_of(f"{name}/{key}", value):
                if path in saved:
                    places[path] = tensor
                    if not torch.is_tensor(value):
                        numbers.append((state, key, tensor))
    fill(places)
    for state, key, tensor in numbers:
        state[key] = type(state[key])(tensor.item())


def set_rates(optimizer: Any, rates: Iterable[float]) -> None:
    """Set the learning rate of each group; torchao keeps it in a tensor, which stays."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(float(rate))
        else:
            group["lr"] = float(rate)


def set_random_states(states: dict[str, torch.Tensor], team: Team, step: int) -> None:
    """The inverse of `random_states`; a process that the saved run lacked is seeded by its rank."""
    prefix = f"{team.rank}/" if team.rank else ""
    own = {name: s for name in ("cpu", "cuda") if (s := states.get(prefix + name)) is not None}
    if own:
        set_random_state(own)
    else:
        torch.manual_seed(1_000_003 * step + team.rank)
