"""The checks of a run that is about to start: what is known of it, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penchant.errors import ConfigError
from penchant.guards.checks import by_severity, check_snapshot, spoken
from penchant.guards.checks.gather import gather_data, gather_model, gather_tokens
from penchant.guards.checks.snapshot import Snapshot
from penchant.guards.finding import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from penchant.config import RunConfig
    from penchant.data.tokenise import TokenReport
    from penchant.rundata import RunData


def take_snapshot(
    config: RunConfig,
    run_data: RunData,
    examples: Sequence[Any],
    report: TokenReport,
    *,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int],
    settings: Any,
    num_steps: int,
) -> Snapshot:
    """A run as rules see it.

    Args:
        config: validated.
        run_data: as read; examples, report: of its training records, tokenised.
        base: the resolved name of the model.
        tokenizer: with the run's template.
        end_ids: tokens at which the model's answers end.
        settings: the model's configuration as it was saved.
        num_steps: optimizer steps.
    """
    return Snapshot(
        config=config,
        data=gather_data(run_data, tokenizer),
        tokens=gather_tokens(examples, report, run_data, tokenizer, end_ids),
        model=gather_model(config, base, tokenizer, end_ids, settings),
        num_steps=num_steps,
    )


def find_faults(run: Snapshot, examples: Sequence[Any]) -> list[Finding]:
    """What the rules and the method itself find, errors first, without what is silenced."""
    config = run.config
    own = config.spec.warnings(examples, config.options)
    return spoken(by_severity([*check_snapshot(run), *own]), config.silence)


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Stop a run that would be wrong.

    Raises:
        ConfigError: some finding is an error.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    said = "\n".join(map(str, errors))
    ids = ",".join(dict.fromkeys(one.id for one in errors))
    raise ConfigError(f"{said}\nif it is meant so, --silence {ids} trains all the same")
