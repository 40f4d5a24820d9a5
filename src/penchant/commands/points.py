"""Runs that differ in some keys, trained one after the other from one start."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from pydantic import TypeAdapter

from penchant.commands.point_start import Start, changed_by
from penchant.commands.run import run_on
from penchant.config.files import read_yaml
from penchant.config.keys import POINT_DEFAULTS, RunConfig, load_config
from penchant.config.mistakes import nearest
from penchant.core.atomic import write_atomically
from penchant.core.errors import ConfigError, RunFailedError, TrainingError
from penchant.core.evaluation import Evaluation
from penchant.core.screen import track
from penchant.core.strict_json import to_json
from penchant.core.team import Team
from penchant.methods import METHODS
from penchant.models.memory import own_part
from penchant.objectives.base import Parts
from penchant.training.accelerator import make_accelerator
from penchant.training.checkpoint_files import drop_unasked
from penchant.training.folder import completed, open_directory
from penchant.training.kind import kind_of
from penchant.training.references import switched_off
from penchant.training.result import TrainResult
from penchant.training.setup import RunData, Setup

logger = logging.getLogger("penchant")

# Of these, the ones that are sane for a method are tried.
BETAS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
PENDING = "not trained yet"
MARKER = "vary.json"
# Keys by which the data are read and divided, in one way for all points.
DATA_KEYS = (
    *("data", "eval_data", "train_fraction", "columns", "split", "eval_split", "strict"),
    *("unpair", "chat_template_kwargs"),
)


@dataclass(frozen=True)
class Point:
    """One setting of a sweep.

    Attributes:
        values: the keys that vary.
        output: its run directory.
        after: its held-out evaluation; None where it failed.
        error: why it failed.
        train_seconds: of its optimizer steps.
    """

    values: dict[str, Any]
    output: Path
    after: Evaluation | None
    error: str | None = None
    train_seconds: float = 0.0


def default_betas(method: str) -> tuple[float, ...]:
    """What beta is tried at where nothing else varies.

    Raises:
        ConfigError: there is no such method, or it has no beta.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; {nearest(method, METHODS)}")
    if "beta" not in METHODS[method].options.model_fields:
        raise ConfigError(f"{method} has no beta; name a key with several values to try")
    usual = METHODS[method].options.model_fields["beta"].default
    low, high = METHODS[method].facts.beta_range or (usual / 10, usual * 3)
    return tuple(sorted({usual, *(beta for beta in BETAS if low <= beta <= high)}))


def point_config(method: str, keys: Mapping[str, Any], file: Path | None) -> RunConfig:
    """The keys of a point, with what is the default where several runs share their start.

    The reference is scored once; evaluation comes after training only.

    Raises:
        ConfigError: a wrong key or value.
    """
    own = dict(POINT_DEFAULTS)
    config = load_config(method, {**keys, **own}, file=file)
    automatic = config.reference == "auto" and not config.sync_ref_model
    if config.spec.needs_reference and automatic and config.cacheable:
        own["reference"] = "cache"
    from_file = read_yaml(file) if file else {}
    own = {key: value for key, value in own.items() if key not in from_file}
    return load_config(method, {**own, **keys, "resume": True}, file=file)


def resumes(keys: Mapping[str, Any], file: Path | None) -> bool:
    """Whether the user wants to go on in a folder: a point's own `resume` is always set."""
    value = {**(read_yaml(file) if file else {}), **keys}.get("resume", False)
    return TypeAdapter(bool).validate_python(value)


def combinations(vary: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values, in order.

    Raises:
        ConfigError: nothing varies.
    """
    empty = [key for key, values in vary.items() if not values]
    if not vary or empty:
        raise ConfigError("no values are given to vary; name them, such as beta=[0.01, 0.1, 0.3]")
    return [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]


def point_name(values: Mapping[str, Any]) -> str:
    """Of a point's run directory."""
    return ",".join(f"{key}={value}" for key, value in values.items()).replace("/", "_")


def open_folder(folder: Path, vary: Mapping[str, Sequence[Any]], *, resume: bool = True) -> None:
    """Take a folder for points, or go on in it.

    Args:
        folder: is made.
        vary: what varies, which is written into it.
        resume: points may be there already.

    Raises:
        TrainingError: it cannot be written, holds something else, or points and `resume` is not
            set.
    """
    wanted = {key: [str(value) for value in values] for key, values in vary.items()}
    try:
        _require_ours(folder, resume)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / MARKER, to_json(wanted))
    except OSError as error:
        raise _unwritable(folder, error) from error


def require_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a folder that `open_folder` would; nothing is written.

    Raises:
        TrainingError: as there.
    """
    try:
        _require_ours(folder, resume)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"output {folder} cannot be written: {error.strerror}; choose another output"
    )


def _require_ours(folder: Path, resume: bool) -> None:
    # A file that another process is writing is not there yet.
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return
    if not (folder / MARKER).exists():
        raise TrainingError(f"{folder} is not empty and holds no sweep; choose another output")
    if not resume:
        raise TrainingError(
            f"{folder} already holds a sweep; choose another output, or --resume to go on"
        )


def finished(config: RunConfig, run_data: RunData) -> Point | None:
    """A point that an earlier call has trained."""
    directory = open_directory(config, make_accelerator(config.precision), run_data)
    point = known_point(config, directory.team)
    if point.after is None:
        return None
    logger.info("%s is complete", config.output)
    return point


def known_point(config: RunConfig, team: Team) -> Point:
    """A point as its folder tells of it, which another worker may train just now."""
    known = _recorded(config) if team.leads else {}
    # A kill may have come between the two files, or the run is to go further: it goes on.
    if "after" in known and completed(config) is None:
        del known["after"]
    known = team.agree(known)
    if "after" not in known:
        return Point({}, config.output, None, known.get("error", PENDING))
    seconds = known["train_seconds"]
    return Point({}, config.output, Evaluation(**known["after"]), train_seconds=seconds)


def _recorded(config: RunConfig) -> dict[str, Any]:
    """What is known of a point: what it came to, and why the last try to train it failed."""
    file = config.output / "point.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def train_point(
    config: RunConfig,
    run_data: RunData,
    start: Start,
    measure: Callable[[], None] | None = None,
) -> Point:
    """Train a point; one that diverges is recorded with its error.

    Its last checkpoint stays until all of this is done: a call after a kill takes no step again.

    Args:
        config: of the point.
        run_data: what it learns from.
        start: what it begins with.
        measure: what else is to be done while the trained weights are there.

    Raises:
        TrainingError: one of several processes has met what the others do not know of.
    """
    with torch.no_grad():
        for name, parameter in changed_by(config, start.setup).items():
            own_part(parameter).copy_(start.weights[name])
            parameter.grad = None  # a point that diverged has left its own
    accelerator = make_accelerator(
        config.precision, trackers=config.trackers, folder=config.output / "trackers"
    )
    set_seed(config.seed)
    directory = open_directory(config, accelerator, run_data)
    try:
        result = run_on(config, accelerator, directory, start.setup, start.snapshot, keep_last=True)
    except TrainingError as error:
        # The others still wait for this process, within the point that it would leave.
        if directory.team.size > 1 and not isinstance(error, RunFailedError):
            raise
        logger.warning("%s failed: %s", config.output.name, error)
        # One that failed before it went further is still what it was with its earlier keys.
        directory.write("point.json", {**_recorded(config), "error": str(error)})
        return Point({}, config.output, None, str(error))
    after = _with_kl(config, start.setup, result, directory.team)
    known = {"after": asdict(after), "train_seconds": result.train_seconds}
    directory.write("point.json", known)
    if measure is not None:
        measure()
    if directory.team.leads:
        drop_unasked(directory.checkpoints, result.steps, config.save_steps)
    return Point({}, config.output, after, train_seconds=result.train_seconds)


def _with_kl(config: RunConfig, setup: Setup, result: TrainResult, team: Team) -> Evaluation:
    """The run's evaluation, with the distance from the start where the run did not need it."""
    assert result.after is not None
    reference = None
    if result.after.kl is None and config.spec.model == "language":
        reference = switched_off(config, setup.scorer)
    if reference is None:
        return result.after
    parts = Parts(setup.scorer, reference, config.spec, config.options, team)
    compared = (
        kind_of(config.spec)
        .objective(parts)
        .evaluate(setup.eval_set, batch_size=config.per_device_eval_batch_size, progress=track)
    )
    return replace(result.after, kl=compared.kl, entropy=compared.entropy)
