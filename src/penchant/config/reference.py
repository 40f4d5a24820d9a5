"""Which keys go with which reference."""

from __future__ import annotations

from typing import Any


def check_reference(config: Any) -> None:
    """Refuse a reference that the method, or another key, does not go with.

    Args:
        config: a `RunConfig`.

    Raises:
        ValueError: which, and what to set.
    """
    needed = config.spec.needs_reference
    needs = config.spec.needs(config.options)
    if needed and not needs.reference and config.reference == "none":
        return
    if config.spec.samples and config.reference == "cache":
        raise ValueError(
            f"{config.method} samples its answers: a cache cannot know them; set reference to "
            "adapter or copy"
        )
    if needed and config.reference == "none":
        raise ValueError(f"{config.method} compares with a reference; set reference to auto")
    if not needed and (config.reference not in ("auto", "none") or config.reference_model):
        raise ValueError(f"{config.method} has no reference; drop reference and reference_model")
    if config.reference == "adapter" and (config.lora_r == 0 or config.reference_model):
        raise ValueError(
            "reference: adapter needs LoRA (lora_r > 0) and no reference_model; "
            "set reference to copy or cache"
        )
    if config.reference == "cache" and not config.cacheable:
        raise ValueError(
            f"{config.method} with these options asks the reference for more than a cache holds; "
            "set reference to adapter or copy"
        )
    if config.sync_ref_model and (not needed or config.reference not in ("auto", "copy")):
        raise ValueError(
            "sync_ref_model changes a copy of the reference; set reference to copy, and use a "
            "method that has one"
        )
