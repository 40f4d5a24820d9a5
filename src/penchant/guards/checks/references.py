"""Rules over what a run holds the policy against."""

from __future__ import annotations

from collections.abc import Iterator

from penchant.core.findings import Finding, warning
from penchant.guards.checks.snapshot import Snapshot


def second_reference(run: Snapshot) -> Iterator[Finding]:
    """A copy beside an adapter that could be switched off."""
    config = run.config
    kept = config.reference.startswith("copy") or (
        bool(config.reference_model) and config.reference != "cache"
    )
    if not (config.spec.needs_reference and config.lora_r and kept) or config.sync_ref_model:
        return
    if config.reference_model and run.model.other_reference:
        return
    yield warning(
        "second-reference",
        "an adapter is trained and a copy of the same model is held beside it as the reference: "
        "the model with its adapter switched off is that reference, for no memory",
        "set reference to auto and leave reference_model out",
        {"reference": config.reference, "reference_model": config.reference_model},
    )


def other_reference(run: Snapshot) -> Iterator[Finding]:
    """A reference that the policy does not start from."""
    config = run.config
    if config.reference_model and run.model.other_reference:
        yield warning(
            "reference-differs",
            f"reference_model {config.reference_model} is not what the policy starts from: log-"
            "ratios are not 0 at the first step, and the divergence counts from another model",
            "leave reference_model out, unless a further round against the first model is meant",
            {"reference_model": config.reference_model, "model": config.model},
        )


RULES = (second_reference, other_reference)
