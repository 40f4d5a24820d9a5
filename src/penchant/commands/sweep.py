"""`penchant.sweep`: a method at several settings from one start, compared on held-out data."""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from penchant.commands.run import run_on
from penchant.config.keys import RunConfig, load_config
from penchant.core.atomic import write_atomically
from penchant.core.errors import ConfigError, TrainingError
from penchant.core.evaluation import Evaluation
from penchant.core.screen import setup_logging, track
from penchant.core.strict_json import to_json
from penchant.guards.checks.gather import checked
from penchant.guards.checks.snapshot import Snapshot
from penchant.methods import METHODS
from penchant.models.reference import AdapterReference
from penchant.objectives.base import Parts
from penchant.training.accelerator import make_accelerator
from penchant.training.folder import open_directory
from penchant.training.inputs import read_inputs, read_run_data
from penchant.training.kind import kind_of
from penchant.training.prepare import prepare
from penchant.training.result import TrainResult
from penchant.training.setup import RunData, Setup

logger = logging.getLogger("penchant")

FILE, PLOT = "sweep.json", "sweep.png"
# Keys of the loop and the loss; a point that differs in any other is loaded again.
LIGHT_KEYS = {
    "output", "resume", "report_to", "learning_rate", "num_train_epochs", "lr_scheduler_type",
    "warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "gradient_accumulation_steps", "eval_steps", "save_steps", "save_minutes", "logging_steps",
    "max_new_tokens", "load_best_model_at_end", "save_total_limit", "eval_samples",
    "eval_on_start", "merge", "silence", "on_finding", "monitor_steps", "monitor_share",
    "monitor_prompts", "monitor_length", "monitor_reward",
}  # fmt: skip


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


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found; `sweep.json` holds the same.

    Attributes:
        output: the folder of the sweep, with a run directory a point.
        points: in the order they were asked for.
        recommended: the index of the point to take, None where every point failed.
        reason: why that one.
    """

    output: Path
    points: list[Point]
    recommended: int | None
    reason: str


def sweep(
    method: str,
    vary: Mapping[str, Sequence[Any]],
    *,
    config: Path | str | None = None,
    **keys: Any,
) -> SweepResult:
    """Train every combination of some keys' values and compare them.

    The model is loaded and the reference scored once; every point starts from the same weights
    and sees the same data. A finished point is not trained again when the sweep is resumed; one
    that diverges is recorded and the others go on.

    Args:
        method: a name in `penchant.METHODS`.
        vary: values by key, such as `{"beta": [0.05, 0.1, 0.3]}`.
        config: a YAML file of flat keys; the arguments here win over it.
        keys: any further key of `penchant.train`; `data` is a path or a hub id.

    Raises:
        UserError: a wrong key or value, no held-out data, anything that stops a single run too.
    """
    setup_logging()
    file = None if config is None else Path(config)
    base = load_config(method, _defaults(method, {**keys, **_first(vary)}), file=file)
    if not (base.eval_data or base.train_fraction):
        raise ConfigError("a sweep compares on held-out data; set train_fraction or eval_data")
    configs = [
        (values, load_config(method, _defaults(method, {**keys, **values}), file=file))
        for values in _points(vary)
    ]
    _open_folder(base, vary)
    run_data = read_run_data(base, base.data, base.eval_data)
    points: list[Point] = []
    start: _Start | None = None
    for values, point in configs:
        point = point.model_copy(update={"output": base.output / _name(values)})
        done = _finished(point, run_data)
        if done is None:
            if start is None or start.keys != _heavy(point):
                start = None  # the old model goes before the new one comes
                start = _load(point, run_data)
            logger.info("point %d of %d: %s", len(points) + 1, len(configs), _name(values))
            done = _train(point, run_data, start)
        points.append(replace(done, values=dict(values)))
    return _conclude(base.output, points)


def _points(vary: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    empty = [key for key, values in vary.items() if not values]
    if not vary or empty:
        raise ConfigError("a sweep needs values to vary, such as beta=[0.05, 0.1, 0.3]")
    combinations = itertools.product(*vary.values())
    return [dict(zip(vary, values, strict=True)) for values in combinations]


def _first(vary: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    return _points(vary)[0]


def _defaults(method: str, keys: dict[str, Any]) -> dict[str, Any]:
    """A sweep's own defaults: the reference scored once, evaluation after training only."""
    own: dict[str, Any] = {"eval_on_start": False, "eval_samples": 0, "monitor_prompts": 0}
    config = load_config(method, {**keys, **own})
    automatic = config.reference == "auto" and not config.sync_ref_model
    if config.spec.needs_reference and automatic and config.cacheable:
        own["reference"] = "cache"
    return {**own, **keys, "resume": True}


def _name(values: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items()).replace("/", "_")


def _heavy(config: RunConfig) -> dict[str, Any]:
    """The keys that decide what is loaded."""
    options = config.spec.options.model_fields
    # What samples is made with its options; what reads pairs or labels is not.
    light = LIGHT_KEYS if config.spec.samples else LIGHT_KEYS | set(options)
    values = {key: value for key, value in config.flat().items() if key not in light}
    # Some options change what the reference is asked for.
    return {**values, "needs": config.spec.needs(config.options)}


def _open_folder(config: RunConfig, vary: Mapping[str, Sequence[Any]]) -> None:
    folder, wanted = config.output, {key: [str(v) for v in vs] for key, vs in vary.items()}
    marker = folder / "vary.json"
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise TrainingError(f"{folder} is not empty and holds no sweep; choose another output")
        if not config.resume:
            raise TrainingError(
                f"{folder} already holds a sweep; choose another output, or --resume to go on"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(marker, to_json(wanted))


@dataclass(frozen=True)
class _Start:
    """What points that differ in light keys only start from.

    Attributes:
        keys: those that decide what is loaded.
        setup: of these points; snapshot: what the checks saw of the first.
        weights: of the parameters that are trained.
    """

    keys: dict[str, Any]
    setup: Setup
    snapshot: Snapshot
    weights: dict[str, torch.Tensor]


def _load(config: RunConfig, run_data: RunData) -> _Start:
    accelerator = make_accelerator(config.precision)
    set_seed(config.seed)
    inputs = read_inputs(config, run_data, num_processes=accelerator.num_processes)
    snapshot = checked(config, inputs, accelerator.num_processes)
    setup = prepare(config, accelerator, inputs, keep_reference=True)
    weights = {n: p.detach().to("cpu", copy=True) for n, p in setup.trained().items()}
    return _Start(_heavy(config), setup, snapshot, weights)


def _finished(config: RunConfig, run_data: RunData) -> Point | None:
    accelerator = make_accelerator(config.precision)
    summary = open_directory(config, accelerator, run_data).summary()
    if summary is None:
        return None
    logger.info("%s is complete", config.output)
    point = json.loads((config.output / "point.json").read_text(encoding="utf-8"))
    after = Evaluation(**point["after"])
    return Point({}, config.output, after, train_seconds=summary["train_seconds"])


def _train(config: RunConfig, run_data: RunData, start: _Start) -> Point:
    with torch.no_grad():
        for name, parameter in start.setup.trained().items():
            parameter.copy_(start.weights[name])
    accelerator = make_accelerator(
        config.precision, trackers=config.trackers, folder=config.output / "trackers"
    )
    set_seed(config.seed)
    directory = open_directory(config, accelerator, run_data)
    try:
        result = run_on(config, accelerator, directory, start.setup, start.snapshot)
    except TrainingError as error:
        logger.warning("%s failed: %s", config.output.name, error)
        return Point({}, config.output, None, str(error))
    after = _with_kl(config, start.setup, result)
    write_atomically(config.output / "point.json", to_json({"after": asdict(after)}))
    return Point({}, config.output, after, train_seconds=result.train_seconds)


def _with_kl(config: RunConfig, setup: Setup, result: TrainResult) -> Evaluation:
    """The run's evaluation, with the distance from the start where the run did not need it."""
    assert result.after is not None
    adapted = config.spec.model == "language" and bool(config.lora_r)
    if result.after.kl is not None or not adapted:
        return result.after
    parts = Parts(setup.scorer, AdapterReference(setup.scorer), config.spec, config.options)
    compared = (
        kind_of(config.spec)
        .objective(parts)
        .evaluate(setup.eval_set, batch_size=config.per_device_eval_batch_size, progress=track)
    )
    return replace(result.after, kl=compared.kl, entropy=compared.entropy)


def recommend(points: Sequence[Point]) -> tuple[int | None, str]:
    """The point to take: the least KL among those as good as the best, within chance.

    Within chance means within one standard error of the best point's accuracy or reward.
    """
    sound = [(i, p.after) for i, p in enumerate(points) if p.after is not None]
    if not sound:
        return None, "every point failed"
    name, best, error = max((after.quality for _, after in sound), key=lambda quality: quality[1])
    close = [(i, after) for i, after in sound if after.quality[1] >= best - error]
    chosen, after = min(
        close, key=lambda one: (math.inf if one[1].kl is None else one[1].kl, -one[1].quality[1])
    )
    reason = f"{name} {after.quality[1]:.3f} ± {after.quality[2]:.3f}; the best is {best:.3f}"
    if len(close) == len(sound) > 1:
        reason += f", and the {len(sound)} points cannot be told apart"
    else:
        reason += f", and {len(close)} of {len(sound)} points are within its standard error"
    if after.kl is not None:
        reason += (
            f"; of these it stays nearest to the reference (KL {after.kl:.4f} nats per token on "
            "held-out texts)"
        )
    return chosen, reason


def _conclude(output: Path, points: list[Point]) -> SweepResult:
    chosen, reason = recommend(points)
    result = SweepResult(output, points, chosen, reason)
    write_atomically(output / FILE, to_json(asdict(result), indent=2, default=str) + "\n")
    plot(result, output / PLOT)
    return result


def comparable_margins(result: SweepResult) -> bool:
    """Whether margins and losses of all points are in one unit: options such as beta scale them."""
    units = {key for name in METHODS for key in METHODS[name].options.model_fields}
    return not any(key in units for key in result.points[0].values)


def plot(result: SweepResult, file: Path) -> None:
    """Accuracy and margin of every sound point over its KL from the reference, as a PNG."""
    from matplotlib.figure import Figure

    points = [(i, p, p.after) for i, p in enumerate(result.points) if p.after is not None]
    if not points:
        return
    figure = Figure(figsize=(9, 4), layout="constrained")
    names = (points[0][2].quality[0], *(("margin",) if comparable_margins(result) else ()))
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for i, point, after in points:
            x, y = after.kl if after.kl is not None else float(i), getattr(after, name) or 0.0
            axes.plot(x, y, "o", color="C1" if i == result.recommended else "C0")
            axes.annotate(_name(point.values), (x, y), textcoords="offset points", xytext=(4, 4))
        known = points[0][2].kl is not None
        axes.set_xlabel("KL from the reference, nats per token" if known else "point")
        axes.set_ylabel(f"held-out {name}")
        axes.margins(0.2)
    partial = file.with_name(f".{file.name}.partial")
    figure.savefig(partial, format="png", dpi=120)
    shutil.move(partial, file)
