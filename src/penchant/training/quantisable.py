"""What cannot be quantised, or cannot be trained because it is, is refused before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.core.errors import ConfigError, ModelError
from penchant.models.locate import is_adapter
from penchant.models.quantised import require_packages, saved_method

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig


def require_quantisable(config: RunConfig, settings: Any, base: str, *, loaded: bool) -> None:
    """Refuse what cannot be quantised, or cannot be trained because it is.

    Args:
        config: of the run.
        settings: the model's configuration; base: its resolved name.
        loaded: whether the model is in memory already.

    Raises:
        ConfigError, ModelError: with what to set.
    """
    wanted, saved = config.quantization, saved_method(settings)
    if wanted != "none":
        if loaded:
            raise ConfigError(
                f"quantization {wanted} quantises a model while it is loaded, and this one was; "
                "load it with a quantization_config, and drop quantization"
            )
        if saved is not None:
            raise ConfigError(
                f"quantization {wanted}: {base} is quantised already ({saved}); drop quantization"
            )
        if is_adapter(Path(base)):
            raise ModelError(
                f"quantization {wanted}: {base} is an adapter, which codes cannot take up; merge "
                "it first (merge: true), then quantise what is merged"
            )
        require_packages("bitsandbytes", f"quantization {wanted}: {base}")
        return
    assert saved is not None
    require_packages(saved, base)
    if is_adapter(Path(base)):  # merged, its base consists of numbers again
        return
    if not config.lora_r or config.sync_ref_model:
        key = "sync_ref_model mixes" if config.lora_r else "lora_r 0 trains"
        raise ModelError(
            f"{base} is quantised ({saved}), and {key} its weights themselves; set lora_r above 0 "
            "and sync_ref_model to false, or give the model as it was before it was quantised"
        )
