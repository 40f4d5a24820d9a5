"""The run directory: one folder that holds everything a run wrote."""

from __future__ import annotations

import json
import logging
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
from penchant.training.inputs import RunData

logger = logging.getLogger("penchant")

# Keys that may differ between a run and its resumption without changing its weights.
FREE_KEYS = {
    "output", "resume", "cache_dir", "report_to", "logging_steps", "save_steps",
    "save_total_limit", "per_device_eval_batch_size", "eval_samples", "max_new_tokens", "merge",
    "strict", "silence",
}  # fmt: skip

# Files of one JSON object a line, each with its step.
LINES = ("metrics.jsonl", "samples.jsonl", "rollouts.jsonl", "findings.jsonl", "monitor.jsonl")

# A folder without any of these belongs to a run that never took a step: it may start again.
BEGUN = ("metrics.jsonl", "findings.jsonl", "checkpoints", "summary.json")


class RunDirectory:
    """Opens a new run, or an interrupted one to go on with.

    Args:
        path: the folder; it is made.
        config: the flat keys of the run, with the data's fingerprints.
        resume: the folder may hold the same run, unfinished or finished.
        silence: ids of findings that are not said.

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
    ) -> None:
        self.path = path
        self.silence = silence
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        earlier = path / "config.yaml"
        self.resumed = require_free(path, config, resume=resume)
        text = yaml.safe_dump(dict(config), sort_keys=False)
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Processes of one run follow each other here: the first has written it for all.
            if not earlier.exists() or earlier.read_text(encoding="utf-8") != text:
                write_atomically(earlier, text)
        except OSError as error:
            raise TrainingError(
                f"output {path} cannot be written: {error.strerror}; choose another output"
            ) from error

    def append(self, file: str, record: Mapping[str, Any]) -> None:
        """Add one JSON line to `file`."""
        with (self.path / file).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")

    def say(self, step: int, finding: Finding, *, once: bool = False) -> None:
        """Log a finding and add it to `findings.jsonl`, if its id is not silenced.

        Args:
            step: that it was found at.
            finding: with what was done about it, if anything.
            once: leave it out where this run has said one of its id before.
        """
        if finding.id in self.silence or (once and self.has_said(finding.id)):
            return
        logger.log(LEVELS[finding.severity], "%s", finding)
        self.append("findings.jsonl", finding.record(step))

    def has_said(self, name: str) -> bool:
        """Whether this run, or the one that it resumes, has said a finding of this id."""
        return any(record["id"] == name for record in self.read("findings.jsonl"))

    def read(self, file: str) -> list[dict[str, Any]]:
        """The JSON lines of `file`; a last line that a kill cut short is left out."""
        path = self.path / file
        # By bytes: a cut may split a character, and answers may hold what str.splitlines splits.
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        return [json.loads(line) for line in lines[:-1]]

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`, which will be done again."""
        for file in LINES:
            kept = [record for record in self.read(file) if record.get("step", 0) <= step]
            if (self.path / file).exists():
                lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
                write_atomically(self.path / file, "".join(lines))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, which marks the run as complete."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """The summary of a complete run."""
        path = self.path / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def require_free(path: Path, config: Mapping[str, Any], *, resume: bool) -> bool:
    """Refuse a folder that a run may not have; nothing is written.

    Args:
        path, config, resume: as of `RunDirectory`.

    Returns:
        Whether the folder holds this run already, to go on with.

    Raises:
        TrainingError: as of `RunDirectory`.
    """
    earlier = path / "config.yaml"
    resumed = earlier.exists() and any((path / name).exists() for name in BEGUN)
    if resumed and not resume:
        raise TrainingError(
            f"{path} already holds a run; choose another output, or --resume to go on with it"
        )
    if path.exists() and not path.is_dir():
        raise TrainingError(f"output {path} is a file; choose a folder")
    if not earlier.exists() and path.is_dir() and any(map(_is_foreign, path.iterdir())):
        raise TrainingError(f"{path} is not empty and holds no run; choose another output")
    if resumed:
        _require_same(path, yaml.safe_load(earlier.read_text(encoding="utf-8")), config)
    return resumed


def _require_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{key}: {before.get(key)!r} then, {value!r} now"
        for key, value in now.items()
        # A key that an older version did not have is as it was.
        if key in before and key not in FREE_KEYS and key != "versions" and before[key] != value
    ]
    if changed:
        raise TrainingError(
            f"{path} holds a run with other settings, which resuming cannot change "
            f"({'; '.join(changed)}); choose another output"
        )


def _is_foreign(path: Path) -> bool:
    """Whether a file is not one that a kill left half-written."""
    return not (path.name.startswith(".") and path.name.endswith(".partial"))


def open_directory(config: RunConfig, accelerator: Accelerator, run_data: RunData) -> RunDirectory:
    """The run's folder, new or to go on with."""
    with accelerator.main_process_first():
        return RunDirectory(
            config.output,
            recorded_keys(config, run_data, accelerator.num_processes),
            resume=config.resume or not accelerator.is_main_process,
            silence=silenced(config.silence),
        )


def recorded_keys(config: RunConfig, run_data: RunData, num_processes: int) -> dict[str, Any]:
    """What `config.yaml` records: the keys, holding for any working folder, and what they met."""
    keys = config.flat()
    for key in ("data", "eval_data", "model", "reference_model", "chat_template"):
        if keys[key] and Path(keys[key]).exists():
            keys[key] = str(Path(keys[key]).absolute())
    return {
        **keys,
        "data_fingerprints": [s.fingerprint for s in run_data.sources],
        "num_processes": num_processes,
        "versions": versions(),
    }
