"""`penchant.sweep`: a method at several settings from one start, compared on held-out data."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from penchant.commands.point_start import Start, heavy_keys, load_start, require_starts
from penchant.commands.points import (
    DATA_KEYS,
    PENDING,
    Point,
    combinations,
    default_betas,
    finished,
    known_point,
    open_folder,
    point_config,
    point_name,
    require_folder,
    resumes,
    train_point,
)
from penchant.config.files import read_yaml
from penchant.config.keys import RunConfig
from penchant.core.atomic import replacing, write_atomically
from penchant.core.errors import ConfigError
from penchant.core.screen import setup_logging
from penchant.core.strict_json import to_json
from penchant.core.team import Team
from penchant.methods import METHODS
from penchant.training.accelerator import make_accelerator, team_of
from penchant.training.inputs import divided, read_run_data
from penchant.training.setup import RunData

logger = logging.getLogger("penchant")

FILE, PLOT = "sweep.json", "sweep.png"


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
    worker: str | None = None,
    **keys: Any,
) -> SweepResult:
    """Train every combination of some keys' values and compare them.

    The model is loaded and the reference scored once; every point starts from the same weights
    and sees the same data, but that each `seed` divides them by `train_fraction` as a run of its
    own does. A finished point is not trained again when the sweep is resumed; one that diverges is
    recorded and the others go on.

    Args:
        method: a name in `penchant.METHODS`.
        vary: values by key, such as `{"beta": [0.01, 0.1, 0.3]}`; nothing: the betas that are
            usual for the method.
        config: a YAML file of flat keys; the arguments here win over it.
        worker: `2/4` trains the second of every four points; others with the same output train
            the rest, and the last that ends compares all points.
        keys: any further key of `penchant.train`; `data` is a path or a hub id.

    Raises:
        UserError: a wrong key or value, no held-out data, a key that varies and by which the data
            are read or divided, anything that stops a single run too.
    """
    setup_logging()
    file = None if config is None else Path(config)
    vary = vary or {"beta": _usual_betas(method, keys, file)}
    configs = _planned(method, vary, keys, file)
    base = configs[0][1]
    first, count = _parse_worker(worker)
    team = team_of(make_accelerator(base.precision))
    resume = worker is not None or resumes(keys, file)
    if team.leads:
        require_folder(base.output, resume=resume)
    undivided = base.model_copy(update={"train_fraction": None})
    run_data = read_run_data(undivided, base.data, base.eval_data)
    configs = [
        (values, one.model_copy(update={"output": base.output / point_name(values)}))
        for values, one in configs
    ]

    @cache
    def data_of(seed: int) -> RunData:
        return divided(base.model_copy(update={"seed": seed}), run_data)

    require_starts((point, data_of(point.seed)) for _, point in configs[first::count])
    if team.leads:
        open_folder(base.output, vary, resume=resume)
    team.wait()
    start: Start | None = None
    for number in range(first, len(configs), count):
        values, point = configs[number]
        if finished(point, run_data) is None:
            if start is None or start.keys != heavy_keys(point):
                start = None  # the old model goes before the new one comes
                start = load_start(point, data_of(point.seed))
                _require_ranked(start)
            logger.info("point %d of %d: %s", number + 1, len(configs), point_name(values))
            train_point(point, run_data, start)
    # Other workers trained meanwhile: which of their points there are is known only now.
    points = [replace(known_point(one, team), values=dict(values)) for values, one in configs]
    several = base.train_fraction and len({one.seed for _, one in configs}) > 1
    note = "; each seed has held-out records of its own, by which points differ too"
    return _conclude(base.output, points, team, note if several else "")


def _require_ranked(start: Start) -> None:
    """Refuse rewards that rank no points.

    Raises:
        ConfigError: all of them compare the answers to one prompt with one another.
    """
    collector = start.setup.collector
    if collector is not None and collector.rewards.rewards and not collector.rewards.alone.rewards:
        raise ConfigError(
            "a sweep ranks its points by the rewards of held-out answers, one to a prompt, which a "
            "judge with pairwise compares with no other; give a reward that scores answers too, or "
            "train the points as runs and compare them with penchant evaluate --against --judge"
        )


def _usual_betas(method: str, keys: Mapping[str, Any], file: Path | None) -> Sequence[float]:
    """What varies where nothing is said to."""
    if "beta" in {**(read_yaml(file) if file else {}), **keys}:
        raise ConfigError("beta is given, and nothing varies; give several values of a key")
    return default_betas(method)


def _planned(
    method: str, vary: Mapping[str, Sequence[Any]], keys: Mapping[str, Any], file: Path | None
) -> list[tuple[dict[str, Any], RunConfig]]:
    """What varies of each point, and all of its keys; `output` is still that of the sweep.

    Raises:
        ConfigError: a wrong key or value, one that cannot vary, or no held-out data.
    """
    if reading := [key for key in vary if key in DATA_KEYS]:
        raise ConfigError(
            f"{reading[0]} cannot differ between points, which share data that are read and "
            "divided in one way; start a sweep for each of its values"
        )
    configs = [
        (values, point_config(method, {**keys, **values}, file)) for values in combinations(vary)
    ]
    if not (configs[0][1].eval_data or configs[0][1].train_fraction):
        raise ConfigError("a sweep compares on held-out data; set train_fraction or eval_data")
    return configs


def _parse_worker(text: str | None) -> tuple[int, int]:
    """The first of a worker's points, and how many there are from one to the next.

    Raises:
        ConfigError: it is not a number of a count.
    """
    if text is None:
        return 0, 1
    number, _, count = str(text).partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ConfigError(
            f"worker must be a number and a count, as 2/4 for the second of four, got {text!r}"
        )
    return int(number) - 1, int(count)


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


def _conclude(output: Path, points: list[Point], team: Team, note: str) -> SweepResult:
    if pending := sum(point.error == PENDING for point in points):
        reason = f"{pending} of {len(points)} points are {PENDING}: the last worker compares them"
        return SweepResult(output, points, None, reason)
    chosen, reason = recommend(points)
    result = SweepResult(output, points, chosen, reason + note)
    if team.leads:
        write_atomically(output / FILE, to_json(asdict(result), indent=2, default=str) + "\n")
        plot(result, output / PLOT)
    team.wait()  # what follows may read the files
    return result


def comparable_margins(result: SweepResult) -> bool:
    """Whether margins and losses of all points are in one unit: options such as beta scale them."""
    units = {key for name in METHODS for key in METHODS[name].options.model_fields}
    return not any(key in units for key in result.points[0].values)


def plot(result: SweepResult, file: Path) -> None:
    """Accuracy and margin of every sound point over its KL from the reference, as a PNG.

    The bar of an accuracy or a reward is its 95% interval, 1.96 standard errors to either side.
    """
    from matplotlib.figure import Figure

    points = [(i, p, p.after) for i, p in enumerate(result.points) if p.after is not None]
    if not points:
        return
    figure = Figure(figsize=(9, 4), layout="constrained")
    names = (points[0][2].quality[0], *(("margin",) if comparable_margins(result) else ()))
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for i, point, after in points:
            x, y = after.kl if after.kl is not None else float(i), getattr(after, name) or 0.0
            quality, _, error = after.quality
            bar = 1.96 * error if name == quality else None
            colour = "C1" if i == result.recommended else "C0"
            axes.errorbar(x, y, bar, fmt="o", color=colour, capsize=3)
            axes.annotate(
                point_name(point.values), (x, y), textcoords="offset points", xytext=(4, 4)
            )
        known = points[0][2].kl is not None
        axes.set_xlabel("KL on held-out texts, nats per token" if known else "point")
        interval = ", 95%" if name == names[0] else ""
        axes.set_ylabel(f"held-out {name}{interval}")
        axes.margins(0.2)
    with replacing(file) as partial:
        figure.savefig(partial, format="png", dpi=120)
