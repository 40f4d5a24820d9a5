"""`penchant.check`: what training would be given, looked at without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from penchant.config import RunConfig
from penchant.data.records import DataError
from penchant.errors import ConfigError, ModelError, RewardError, TrainingError, UserError
from penchant.guards.checks import by_severity, spoken
from penchant.guards.checks.gather import saved_settings
from penchant.guards.checks.start import find_faults, take_snapshot
from penchant.guards.finding import SEVERITIES, Finding
from penchant.guards.preview import Preview, preview
from penchant.models.load import end_token_ids, load_tokenizer, resolve
from penchant.prepare import planned_steps
from penchant.rundata import (
    make_tokeniser,
    read_run_data,
    require_margins,
    require_mismatches,
    tokenise,
)
from penchant.runtime import resolve_precision, setup_logging
from penchant.training import Given, given

# A mistake that stops a run before there is anything to check, by its kind.
STOPPED: tuple[tuple[type[UserError], str], ...] = (
    (DataError, "data"),
    (ModelError, "model"),
    (ConfigError, "configuration"),
    (RewardError, "reward"),
    (TrainingError, "output"),
)


@dataclass(frozen=True)
class CheckResult:
    """What a run would meet.

    Attributes:
        method: that was checked.
        findings: errors first, without what is silenced.
        preview: the first record by token; None where data or tokenizer could not be read.
    """

    method: str
    findings: list[Finding]
    preview: Preview | None = None

    @property
    def errors(self) -> list[Finding]:
        """Those that would make the run wrong."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def counts(self) -> dict[str, int]:
        """Findings by severity."""
        severities = [finding.severity for finding in self.findings]
        return {severity: severities.count(severity) for severity in SEVERITIES}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "method": self.method,
            "counts": self.counts(),
            "findings": [{**asdict(finding), "docs": finding.docs} for finding in self.findings],
            "preview": None if self.preview is None else self.preview.as_dict(),
        }


def check(method: str, *, config: Path | str | None = None, **keys: Any) -> CheckResult:
    """Look at a run before it starts: its configuration, data, tokens and model.

    No weights are loaded. What would stop the run is an error finding, not an exception.

    Args:
        method: a name in `penchant.METHODS`.
        config: a YAML file of flat keys; the arguments here win over it.
        keys: any key that `penchant.train` takes.
    """
    setup_logging()
    try:
        wanted = given(method, config=config, keys=keys)
    except UserError as error:
        return CheckResult(method, spoken([_stopped(error)], str(keys.get("silence") or "")))
    try:
        return _look(wanted)
    except UserError as error:
        return CheckResult(method, spoken([_stopped(error)], wanted.config.silence))


def _stopped(error: UserError) -> Finding:
    """The finding that a mistake is; by our convention its fix stands behind the last semicolon."""
    name = next(name for kind, name in STOPPED if isinstance(error, kind))
    said = str(error)
    what, semicolon, remedy = said.rpartition("; ")
    return Finding(name, "error", what if semicolon else said, remedy if semicolon else "see above")


def _look(wanted: Given) -> CheckResult:
    import torch

    config = wanted.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolve_precision(config.precision, device)
    base = resolve(config.model, config.cache_dir)
    tokenizer = load_tokenizer(
        base, chat_template=config.chat_template, trust_remote_code=config.trust_remote_code
    )
    settings = saved_settings(base, trust_remote_code=config.trust_remote_code)
    model: Any = SimpleNamespace(config=settings, generation_config=_generation_settings(base))
    end_ids = end_token_ids(model)
    run_data = read_run_data(config, wanted.data, wanted.eval_data)
    examples, report = tokenise(
        run_data.train, make_tokeniser(config, tokenizer, model), "training"
    )
    _require_examples(config, examples)
    run = take_snapshot(
        config,
        run_data,
        examples,
        report,
        base=base,
        tokenizer=tokenizer,
        end_ids=end_ids,
        settings=settings,
        num_steps=planned_steps(config, examples),
    )
    return CheckResult(
        config.method,
        by_severity(find_faults(run, examples)),
        preview(examples[0], tokenizer, end_ids),
    )


def _require_examples(config: RunConfig, examples: Sequence[Any]) -> None:
    """What training asks of the examples before it starts."""
    require_mismatches(config, examples)
    if config.spec.needs(config.options).margins:
        require_margins(examples)


def _generation_settings(base: str) -> Any:
    """How the model ends its answers, where it comes with that; None where it does not."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(base)
    except OSError:
        return None
