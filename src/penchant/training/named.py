"""What a configuration names, looked for before a weight is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penchant.models.locate import resolve
from penchant.models.rough_sizes import empty_model
from penchant.models.size import saved_settings
from penchant.models.targets import require_targets
from penchant.training.reference_models import require_same_vocabulary

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig


def require_layers(config: RunConfig, base: str, find_class: Any) -> None:
    """Refuse names that nothing in the model has, where LoRA goes to names."""
    if config.lora_r:
        trusted = config.trust_remote_code
        model = empty_model(base, trust_remote_code=trusted, find_class=find_class)
        require_targets(
            model,
            config.lora_target_modules,
            config.lora_target_parameters,
            config.peft.get("modules_to_save") or (),
        )


def require_reference(config: RunConfig, settings: Any) -> None:
    """Refuse a reference that is not there, or has other tokens than the model."""
    name = resolve(str(config.reference_model), config.cache_dir)
    other = saved_settings(name, trust_remote_code=config.trust_remote_code)
    require_same_vocabulary(settings, other)
