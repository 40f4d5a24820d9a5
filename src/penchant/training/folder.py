"""The run directory: one folder that holds everything a run wrote."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from penchant.config.keys import RunConfig
from penchant.core.atomic import write_atomically
from penchant.core.errors import TrainingError
from penchant.core.findings import LEVELS, Finding, silenced
from penchant.core.machine import versions
from penchant.core.strict_json import to_json
from penchant.core.team import ALONE, Team
from penchant.training.accelerator import team_of
from penchant.training.setup import RunData

logger = logging.getLogger("penchant")

# Files of one JSON object a line, each with its step.
LINES = ("metrics.jsonl", "samples.jsonl", "rollouts.jsonl", "findings.jsonl", "monitor.jsonl")

# What tells that a run is complete, and what commands have then found of it.
ENDED = ("summary.json", "point.json", "yardstick.json", "held_out_scores.json")

# Everything that a run writes into its folder. Its config goes last: while it is there, a folder
# from which only some files were removed is known for a run's.
WRITTEN = (
    *LINES, "data.json", *ENDED, "report.html", "checkpoints", "model", "merged", "trackers",
    "config.yaml",
)  # fmt: skip


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file, if it is there; a last line that a kill cut short is left out."""
    # By bytes: a cut may split a character, and answers may hold what str.splitlines splits.
    lines = file.read_bytes().split(b"\n") if file.exists() else []
    return [json.loads(line) for line in lines[:-1]]


class RunDirectory:
    """Opens a new run, or an earlier one to go on with, which stays complete until it does.

    Args:
        path: the folder; it is made.
        config: the flat keys of the run, with the data's fingerprints.
        resume: the folder may hold the same run, unfinished or finished.
        silence: ids of findings that are not said.
        overwrite: an earlier run in the folder is removed.
        team: the processes of the run; the leader alone reads and writes, for all of them.

    Raises:
        TrainingError: the folder holds another run, or a run with other settings.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        *,
        resume: bool,
        silence: Collection[str] = (),
        overwrite: bool = False,
        team: Team = ALONE,
    ) -> None:
        self.path, self.config = path, dict(config)
        self.silence = silence
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.team = team
        resumed = team.leads and require_free(path, config, resume=resume, overwrite=overwrite)
        self.resumed = team.agree(resumed)
        if not team.leads:
            return
        if (path / "config.yaml").exists() and not self.resumed:
            _remove_run(path)
        # Once keys that have grown are recorded, nothing tells that a complete run goes further.
        if not (self.resumed and (path / "summary.json").exists()):
            self._record_keys()

    def _record_keys(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            keys = yaml.safe_dump(self.config, sort_keys=False)
            write_atomically(self.path / "config.yaml", keys)
        except OSError as error:
            raise TrainingError(
                f"output {self.path} cannot be written: {error.strerror}; choose another output"
            ) from error

    def append(self, file: str, record: Mapping[str, Any]) -> None:
        """Add one JSON line to `file`."""
        if not self.team.leads:
            return
        with (self.path / file).open("a", encoding="utf-8") as stream:
            stream.write(to_json(record) + "\n")

    def say(self, step: int, finding: Finding, *, once: bool = False) -> None:
        """Log a finding and add it to `findings.jsonl`, if its id is not silenced.

        Args:
            step: that it was found at.
            finding: with what was done about it, if anything.
            once: leave it out where this run has said one of its id before.
        """
        if finding.id in self.silence or (once and self.has_said(finding.id)):
            return
        if not self.team.leads and finding.severity != "error":
            return
        logger.log(LEVELS[finding.severity], "%s", finding)
        self.append("findings.jsonl", finding.record(step))

    def has_said(self, name: str) -> bool:
        """Whether this run, or the one that it resumes, has said a finding of this id."""
        return any(record["id"] == name for record in self.read("findings.jsonl"))

    def read(self, file: str) -> list[dict[str, Any]]:
        """The JSON lines of `file`; a last line that a kill cut short is left out."""
        return self.team.agree(read_lines(self.path / file) if self.team.leads else [])

    def reopen(self) -> None:
        """The run goes on: until it has ended again it is not complete."""
        if self.team.leads:
            for name in ENDED:
                (self.path / name).unlink(missing_ok=True)
            self._record_keys()

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, which marks the run as complete."""
        self.write("summary.json", summary)

    def write(self, file: str, record: Mapping[str, Any]) -> None:
        """Write a file that is one JSON object."""
        if self.team.leads:
            write_atomically(self.path / file, to_json(record, indent=2) + "\n")


def read_summary(path: Path) -> dict[str, Any] | None:
    """The summary of a complete run in a folder; None where there is none."""
    file = path / "summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def completed(config: RunConfig) -> dict[str, Any] | None:
    """The summary of the run in `output`, if it is complete and is not asked to go further."""
    if not config.resume or (summary := read_summary(config.output)) is None:
        return None
    from penchant.training.same_run import goes_further

    return None if goes_further(config.output, config.flat()) else summary


def require_free(
    path: Path, config: Mapping[str, Any], *, resume: bool, overwrite: bool = False
) -> bool:
    """Refuse a folder that a run may not have; nothing is written.

    Args:
        path, config, resume, overwrite: as of `RunDirectory`.

    Returns:
        Whether the folder holds this run already, to go on with.

    Raises:
        TrainingError: as of `RunDirectory`.
    """
    earlier = path / "config.yaml"
    begun = earlier.exists() and _has_begun(path)
    if begun and not (resume or overwrite):
        raise TrainingError(
            f"{path} already holds a run; --resume goes on with it, --overwrite removes it, or "
            "choose another output"
        )
    if path.exists() and not path.is_dir():
        raise TrainingError(f"output {path} is a file; choose a folder")
    if not earlier.exists() and path.is_dir() and any(map(_is_foreign, path.iterdir())):
        raise TrainingError(f"{path} is not empty and holds no run; choose another output")
    if begun and resume:
        from penchant.training.same_run import require_same

        require_same(path, config)
    return begun and resume


def _has_begun(path: Path) -> bool:
    """Whether a run took a step: one that did not may start again in its folder."""
    if (path / "checkpoints").exists() or (path / "summary.json").exists():
        return True
    return any(record["step"] > 0 for record in read_lines(path / "metrics.jsonl"))


def _remove_run(path: Path) -> None:
    """Remove what a run writes; other files in its folder stay."""
    for name in WRITTEN:
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink(missing_ok=True)


def _is_foreign(path: Path) -> bool:
    """Whether a file is not one that a kill left half-written."""
    return not (path.name.startswith(".") and path.name.endswith(".partial"))


def open_directory(config: RunConfig, accelerator: Accelerator, run_data: RunData) -> RunDirectory:
    """The run's folder, new or to go on with."""
    return RunDirectory(
        config.output,
        recorded_keys(config, run_data, accelerator.num_processes),
        resume=config.resume,
        silence=silenced(config.silence),
        overwrite=config.overwrite,
        team=team_of(accelerator),
    )


def _absolute(name: str) -> str:
    """A path for any working folder; what is no path, such as a hub id, as it is."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def recorded_keys(config: RunConfig, run_data: RunData, num_processes: int) -> dict[str, Any]:
    """What `config.yaml` records: the keys, holding for any working folder, and what they met."""
    keys = config.flat()
    named = ("data", "eval_data", "model", "reference_model", "teacher_model", "chat_template")
    for key in named:
        if isinstance(keys.get(key), list):
            keys[key] = [_absolute(name) for name in keys[key]]
        elif keys.get(key):
            keys[key] = _absolute(keys[key])
    return {
        **keys,
        "data_fingerprints": [s.fingerprint for s in run_data.sources],
        "num_processes": num_processes,
        "versions": versions(),
    }
