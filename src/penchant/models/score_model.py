"""Models that score text: a reward model from its files, or a language model with a new head."""

from __future__ import annotations

import copy
import difflib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.core.errors import ModelError
from penchant.models.architecture import (
    SCORING,
    require_whole,
    scoring_architecture,
)
from penchant.models.load import LanguageHead, load_causal_model, load_model
from penchant.models.locate import is_adapter
from penchant.models.unknown import unknown_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def score_class(config: Any, name: str, trust_remote_code: bool) -> Any:
    """The class with a head that scores a text; arguments and errors as for `causal_class`."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    remote = getattr(config, "auto_map", None) or {}
    if trust_remote_code and "AutoModelForSequenceClassification" in remote:
        return transformers.AutoModelForSequenceClassification
    mapping = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(config) in mapping:
        return mapping[type(config)]
    names = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    both = [kind for kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind in names]
    near = difflib.get_close_matches(config.model_type, both, n=3, cutoff=0.5) or ["llama", "qwen3"]
    raise ModelError(
        f"{unknown_class(config, name, 'scores texts')}; a reward model can be made of a model of "
        f"type {' or '.join(near)}, among others"
    )


class ScoreHead(LanguageHead):
    """A scalar head: a reward model's, or a new one, which is random, on a language model."""

    scores = True

    def find_class(self, config: Any, name: str, trust_remote_code: bool) -> Any:
        """The class that reads the files."""
        return score_class(config, name, trust_remote_code)

    def options(self, config: Any) -> dict[str, Any]:
        """One label where the files hold no head."""
        return {} if scoring_architecture(config) else {"num_labels": 1}

    def require(self, model: Any, missing: set[str], name: str, config: Any) -> None:
        """Refuse several labels, and weights that the files lack, but for those of a new head."""
        if model.config.num_labels != 1:
            raise ModelError(
                f"{name} has {model.config.num_labels} labels; a reward model has one, the score"
            )
        if not scoring_architecture(config):
            missing = {key for key in missing if not key.startswith("score.")}
        require_whole(model, missing, name)

    def under_other(self, name: str, **how: Any) -> Any:
        """A language model's adapter, merged, under a new head."""
        return _with_new_head(load_causal_model(name, **how))


load_score_model = partial(load_model, ScoreHead())
"""A model with a scalar head; seed torch before where the head is new.

Arguments and errors are those of `load_model`.
"""


def _with_new_head(model: Any) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    factory = score_class(config, config.name_or_path, trust_remote_code=False)
    scored: Any = factory(config).to(model.dtype)
    scored.base_model.load_state_dict(model.base_model.state_dict())
    return scored.eval()


def is_score_model(name: str) -> bool:
    """Whether a resolved name is a folder with a reward model or its adapter."""
    if is_adapter(Path(name)):
        from penchant.models.adapter_files import adapter_settings

        return adapter_settings(name).get("task_type") == "SEQ_CLS"
    if not (Path(name) / "config.json").exists():
        return False
    return any(kind in one for one in saved_architectures(name) for kind in SCORING)


def saved_architectures(name: str) -> list[str]:
    """What the configuration of a resolved name calls its architectures; no code of it is run.

    Raises:
        ModelError: there is no configuration.
    """
    from transformers import PreTrainedConfig

    try:
        settings, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model could be loaded from {name}: {error}") from error
    return settings.get("architectures") or []
