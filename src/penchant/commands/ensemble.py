"""Several reward models from one data set, which differ in seed and data order."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed

from penchant.commands.run import run_on
from penchant.config.keys import RunConfig
from penchant.core.atomic import write_atomically
from penchant.core.errors import TrainingError
from penchant.core.evaluation import Evaluation
from penchant.core.screen import track
from penchant.core.strict_json import to_json
from penchant.guards.checks.gather import checked
from penchant.methods import LossOutput
from penchant.methods.inputs import ScoreInputs
from penchant.objectives.scores import STATISTICS, ScoreObjective, score_evaluation
from penchant.training.accelerator import make_accelerator
from penchant.training.checkpoint_files import drop_unasked
from penchant.training.folder import completed, open_directory
from penchant.training.inputs import read_inputs
from penchant.training.kind import make_objective
from penchant.training.prepare import prepare
from penchant.training.result import TrainResult
from penchant.training.setup import RunData

logger = logging.getLogger("penchant")

FILE = "ensemble.json"
SCORES = "held_out_scores.json"


def train_ensemble(config: RunConfig, size: int, run_data: RunData) -> TrainResult:
    """Train `size` members, each a run of its own, and judge them together.

    Members share the split of the data; their scores are compared after normalising each by its
    own training statistics.

    Args:
        config: of the ensemble; member i has its seed plus i.
        size: at least 2.
        run_data: read once.

    Returns:
        Of the ensemble: its evaluation is that of the mean normalised score. `ensemble.json` names
        the members and their disagreement.
    """
    if (config.output / FILE).exists() and not config.resume:
        raise TrainingError(
            f"{config.output} already holds an ensemble; choose another output, or --resume"
        )
    members = [_member_config(config, i) for i in range(size)]
    results = [_member(member, run_data) for member in members]
    record: dict[str, Any] = {
        "members": [f"{member.output.name}/model" for member in members],
        "evaluations": [None if r.after is None else asdict(r.after) for r in results],
    }
    after = None
    if run_data.evaluation:
        inputs, record["disagreement"] = _together([m.output for m in members])
        after = score_evaluation(inputs, _loss(config, inputs))
        record["evaluation"] = asdict(after)
    if PartialState().is_main_process:
        write_atomically(config.output / FILE, to_json(record, indent=2) + "\n")
    PartialState().wait_for_everyone()  # what follows may read the file
    return _result(config, results, after)


def _member_config(config: RunConfig, number: int) -> RunConfig:
    options = config.options.model_copy(update={"ensemble": None})
    return config.model_copy(
        update={
            "seed": config.seed + number,
            "output": config.output / f"member-{number + 1}",
            "options": options,
            "resume": True,
        }
    )


def _member(config: RunConfig, run_data: RunData) -> TrainResult:
    accelerator = make_accelerator(
        config.precision, trackers=config.trackers, folder=config.output / "trackers"
    )
    set_seed(config.seed)
    directory = open_directory(config, accelerator, run_data)
    done = directory.team.agree(completed(config))
    if done is not None and (not run_data.evaluation or (config.output / SCORES).exists()):
        logger.info("%s is complete", config.output)
        return TrainResult.from_summary(done)
    logger.info("member %s, seed %d", config.output.name, config.seed)
    inputs = read_inputs(config, run_data, num_processes=accelerator.num_processes)
    snapshot = checked(config, inputs, accelerator.num_processes)
    setup = prepare(config, accelerator, inputs)
    result = run_on(config, accelerator, directory, setup, snapshot, keep_last=True)
    if setup.eval_set:
        objective = make_objective(config, accelerator, setup)
        assert isinstance(objective, ScoreObjective)
        with accelerator.autocast():
            scores = objective.scores(
                setup.eval_set, batch_size=config.per_device_eval_batch_size, progress=track
            )
        values = {"chosen": scores.chosen.tolist(), "rejected": scores.rejected.tolist()}
        if accelerator.is_main_process:
            write_atomically(config.output / SCORES, to_json(values))
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        drop_unasked(directory.checkpoints, result.steps, config.save_steps)
    return result


def _together(folders: list[Path]) -> tuple[ScoreInputs, float]:
    """Mean normalised scores of the held-out pairs, and the members' mean deviation from them."""
    normalised = []
    for folder in folders:
        scores = json.loads((folder / SCORES).read_text(encoding="utf-8"))
        known = json.loads((folder / "model" / STATISTICS).read_text(encoding="utf-8"))
        values = torch.tensor([scores["chosen"], scores["rejected"]], dtype=torch.float64)
        normalised.append((values - known["mean"]) / (known["std"] or 1.0))
    every = torch.stack(normalised)  # [members, 2, pairs]
    chosen, rejected = every.mean(0).unbind(0)
    return ScoreInputs(chosen, rejected), float(every.std(0).mean())


def _loss(config: RunConfig, inputs: ScoreInputs) -> LossOutput:
    options = config.options.model_copy(update={"use_margins": False})
    return config.spec.loss(inputs, options)


def _result(config: RunConfig, results: list[TrainResult], after: Evaluation | None) -> TrainResult:
    seconds = sum(result.train_seconds for result in results)
    return TrainResult(
        output=config.output,
        model=config.output,
        steps=sum(result.steps for result in results),
        train_seconds=seconds,
        examples_per_second=mean(result.examples_per_second for result in results),
        tokens_per_second=mean(result.tokens_per_second for result in results),
        memory_peak_bytes=max(result.memory_peak_bytes for result in results),
        before=results[0].before,
        after=after,
        best_step=None,
    )
