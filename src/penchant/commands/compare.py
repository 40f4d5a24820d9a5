"""`penchant.compare`: several methods from one start on the same data, by one yardstick."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.commands.compare_plan import Planned, plan
from penchant.commands.compare_plot import plot
from penchant.commands.comparison import Compared, Comparison, conclude, figures
from penchant.commands.point_start import Start, heavy_keys, load_start, require_starts
from penchant.commands.points import (
    finished,
    known_point,
    open_folder,
    require_folder,
    resumes,
    train_point,
)
from penchant.commands.yardstick import FILE as MEASURED
from penchant.commands.yardstick import (
    YARDSTICKS,
    Measured,
    UnjudgedError,
    Yardstick,
    answers_asked,
)
from penchant.config.keys import RunConfig
from penchant.config.mistakes import nearest
from penchant.core.atomic import write_atomically
from penchant.core.errors import ConfigError, RewardError, TrainingError
from penchant.core.screen import setup_logging
from penchant.core.strict_json import to_json
from penchant.core.team import ALONE
from penchant.data.records import prompt_key
from penchant.training.accelerator import make_accelerator
from penchant.training.inputs import read_run_data
from penchant.training.setup import RunData

logger = logging.getLogger("penchant")

FILE, PLOT, START = "compare.json", "compare.png", "start"


def compare(
    methods: Sequence[str],
    vary: Mapping[str, Sequence[Any]] | None = None,
    *,
    yardstick: str | None = None,
    num_answers: int = 32,
    config: Path | str | None = None,
    **keys: Any,
) -> Comparison:
    """Train several methods, each at every combination of its keys' values, and compare them.

    Every point starts from the same weights, sees the same pairs and is measured on the same
    held-out pairs and prompts. The reference is scored once for all methods that have one. A point
    that diverges, or none of whose answers can be judged, is recorded, and the others go on.

    Args:
        methods: names in `penchant.METHODS` that learn from pairs, or from labels (pairs are then
            taken apart).
        vary: values by key, such as `{"beta": [0.01, 0.1]}`; an option that a method does not have
            is left out of its points. `method.key` is of one method alone.
        yardstick: `win_rate`, `reward`, `implicit` or `raw`; default: `win_rate` with a
            `monitor_reward`, otherwise `implicit`.
        num_answers: held-out prompts that every point answers, at least 1.
        config: a YAML file of flat keys; the arguments here win over it.
        keys: any further key of `penchant.train`, or `method.key`. `monitor_reward` judges answers.

    Raises:
        UserError: a wrong key or value, no held-out pairs, a `monitor_reward` that fails on every
            answer of every point, anything that stops a single run too.
    """
    setup_logging()
    if num_answers < 1:
        raise ConfigError(f"num_answers must be at least 1, got {num_answers}; set num_answers")
    file = None if config is None else Path(config)
    planned = plan(methods, vary or {}, keys, file)
    if (launched := make_accelerator(planned[0].config.precision).num_processes) > 1:
        raise ConfigError(
            f"penchant compare measures in one process, and {launched} were launched; start it "
            "without a launcher, or vary the keys of one method with penchant sweep"
        )
    output, decides = planned[0].config.output.parent, _decides(yardstick, planned[0].config)
    resume = resumes(keys, file)
    require_folder(output, resume=resume)
    data = _read(planned)
    require_starts((one.config, data[one.config.spec.data]) for one in planned)
    open_folder(output, {"methods": methods, **(vary or {})}, resume=resume)
    measuring = _Measuring(output, data, answers_asked(planned[0].config, num_answers))
    points = []
    for number, one in enumerate(planned, 1):
        logger.info("point %d of %d: %s", number, len(planned), one.config.output.name)
        points.append(measuring.point(one))
    assert measuring.start is not None, "a finished point was measured against it"
    return _concluded(output, decides, measuring.start, points)


def _decides(yardstick: str | None, config: RunConfig) -> str:
    judged = config.monitor_reward is not None
    if yardstick is None:
        return "win_rate" if judged else "implicit"
    if yardstick not in YARDSTICKS:
        raise ConfigError(f"unknown yardstick {yardstick!r}; {nearest(yardstick, YARDSTICKS)}")
    if yardstick in ("win_rate", "reward") and not judged:
        raise ConfigError(f"{yardstick} needs a reward that judges answers; set monitor_reward")
    return yardstick


def _read(planned: Sequence[Planned]) -> dict[str, RunData]:
    """The data as each kind of method reads them; no pair is held out here and learned from there.

    Raises:
        ConfigError: the two readings are divided differently.
    """
    data: dict[str, RunData] = {}
    for one in planned:
        kind, config = one.config.spec.data, one.config
        if kind not in data:
            data[kind] = read_run_data(config, config.data, config.eval_data)
    if "labels" in data and planned[0].config.train_fraction:
        learned = {prompt_key(record) for record in data["labels"].train}
        shared = sum(prompt_key(record) in learned for record in data["pairs"].evaluation)
        if shared:
            raise ConfigError(
                f"{shared} held-out pairs would be learned from as labels: the data are divided "
                "differently for the two; divide them with penchant data split, and set eval_data"
            )
    return data


class _Measuring:
    """Trains points, and measures each while its weights are there."""

    def __init__(self, output: Path, data: Mapping[str, RunData], asked: Mapping[str, int]) -> None:
        self.folder, self.data, self.asked = output / START, data, asked
        self.pairs: Any = data["pairs"].evaluation
        self.start = Measured.load(self.folder)
        if self.start is not None and self.start.asked:
            _require_asked(self.folder / MEASURED, self.start.asked, asked)
        self.loaded: Start | None = None
        self.judge: list[Any] | None = None
        self.yardstick: Yardstick | None = None

    def point(self, one: Planned) -> Compared:
        """Train a point and measure it, unless an earlier call has done so."""
        run_data = self.data[one.config.spec.data]
        done, measured = finished(one.config, run_data), Measured.load(one.config.output)
        unjudged: str | None = None
        if done is not None and measured is None:
            logger.info("%s was not measured: its last checkpoint is gone on with", done.output)
        if done is None or measured is None:
            loaded, yardstick = self._load(one.config, run_data)

            def measure() -> None:
                yardstick.measure().save(one.config.output)

            try:
                done = train_point(one.config, run_data, loaded, measure)
                measured = None if done.after is None else Measured.load(one.config.output)
            except UnjudgedError as error:  # its last checkpoint stays, for it to be judged later
                logger.warning("%s could not be judged: %s", one.config.output.name, error)
                done = known_point(one.config, ALONE)
                measured, unjudged = error.measured, str(error)
        return Compared(
            one.method,
            one.values,
            one.config.output,
            measured,
            error=done.error,
            train_seconds=done.train_seconds,
            unjudged=unjudged,
        )

    def _load(self, config: RunConfig, run_data: RunData) -> tuple[Start, Yardstick]:
        if self.loaded is None or self.yardstick is None or self.loaded.keys != heavy_keys(config):
            self.loaded = self.yardstick = None  # the old model goes before the new one comes
            # A judge that has gone away since says so where it is asked, point by point.
            self.loaded = load_start(config, run_data, self.judge)
            self.judge = self.loaded.setup.monitor_rewards
            self.yardstick = Yardstick(
                config,
                make_accelerator(config.precision),
                self.loaded.setup,
                self.loaded.weights,
                self.pairs,
                self.asked["num_answers"],
                () if self.start is None else self.start.reward,
            )
            self._require_same(self.yardstick.start)
        return self.loaded, self.yardstick

    def _require_same(self, start: Measured) -> None:
        """All points are asked the same."""
        if self.start is None:
            self.folder.mkdir(exist_ok=True)
            start.save(self.folder)
            self.start = start
        same = (
            self.start.pair_prompts == start.pair_prompts
            and self.start.answer_prompts == start.answer_prompts
        )
        if not same:
            raise TrainingError(
                f"the held-out pairs differ from those in {self.folder}; choose another output"
            )


def _require_asked(file: Path, before: Mapping[str, int], now: Mapping[str, int]) -> None:
    """Refuse to go on where other answers would be compared with those that are there."""
    changed = [
        f"{key}: {before[key]} then, {value} now"
        for key, value in now.items()
        if before[key] != value
    ]
    if changed:
        raise TrainingError(
            f"{file} holds answers of other settings, which new ones cannot be compared with "
            f"({'; '.join(changed)}); set these as they were, or choose another output"
        )


def _concluded(
    output: Path, yardstick: str, start: Measured, points: Sequence[Compared]
) -> Comparison:
    judged, best, recommended, reason = conclude(yardstick, start, points)
    result = Comparison(output, yardstick, start, judged, best, recommended, reason)
    write_atomically(output / FILE, to_json(figures(result), indent=2, default=str) + "\n")
    plot(result, output / PLOT)
    _require_judged(result)
    return result


def _require_judged(result: Comparison) -> None:
    reasons = [one.unjudged for one in result.points if one.measured is not None]
    if reasons and all(reasons):
        raise RewardError(
            f"monitor_reward judged no point: {reasons[0]}; --resume has the trained points judged "
            f"without another step, and {result.output / FILE} holds what needs no judge"
        )
