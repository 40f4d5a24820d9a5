"""Find and load the reward models that a run names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils.hub import cached_file

from penchant.core.errors import ModelError
from penchant.methods.online import RewardOptions
from penchant.models.architecture import read_config, scoring_architecture
from penchant.models.frozen import hold_frozen
from penchant.models.load import end_token_ids, load_tokenizer
from penchant.models.locate import is_adapter, resolve
from penchant.models.reward_scorer import RewardScorer
from penchant.models.score_model import is_score_model, load_score_model
from penchant.rl.rewards.models import EnsembleReward, ModelContext, ModelReward
from penchant.rl.rewards.shaping import Statistics
from penchant.rl.rewards.shared_adapter import SharedAdapterReward, why_apart
from penchant.rl.rewards.tokens import RewardTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STATISTICS = "reward_statistics.json"
ENSEMBLE = "ensemble.json"
# Where neither the model nor its tokenizer says how much it reads.
UNBOUNDED = 1 << 20


def load_model_reward(
    name: str, options: RewardOptions, context: ModelContext
) -> ModelReward | EnsembleReward:
    """The reward that a folder, run, ensemble or hub id holds.

    An adapter that was trained on the policy's base is scored on the policy's weights, where the
    context has a policy.

    Args:
        name: what the user named.
        options: `reward_ensemble` and `reward_ensemble_k`, for an ensemble's members.
        context: of the run.

    Raises:
        ModelError: there is no reward model, or an ensemble's member has no statistics.
    """
    if not (Path(name) / ENSEMBLE).exists():
        return _single(name, _label(name), context)
    record = json.loads((Path(name) / ENSEMBLE).read_text(encoding="utf-8"))
    paths = [Path(name) / member for member in record["members"]]
    without = [path for path in paths if not (path / STATISTICS).exists()]
    if without or not paths:
        raise ModelError(
            f"{name}: the members of an ensemble are compared by {STATISTICS}, which "
            f"{', '.join(map(str, without)) or 'no member'} has; train the ensemble again"
        )
    label = _label(name)
    members = [_single(str(p), f"{label}/{i}", context) for i, p in enumerate(paths, start=1)]
    return EnsembleReward(
        label, members, combination=options.reward_ensemble, k=options.reward_ensemble_k
    )


def find_scorer(name: str, trust_remote_code: bool) -> str:
    """The resolved name of a reward model, whose weights are not looked at.

    Raises:
        ModelError: there is no such model, or it has no score head.
    """
    folder = resolve(name)
    if is_adapter(Path(folder)):
        scores = is_score_model(folder)
    else:
        scores = scoring_architecture(read_config(folder, trust_remote_code)) is not None
    if not scores:
        raise ModelError(
            f"{name} is no reward model: it has no score head; train one on pairs with method "
            "reward, or name a sequence classifier with one label"
        )
    return folder


def _single(name: str, label: str, context: ModelContext) -> ModelReward:
    folder = find_scorer(name, context.trust_remote_code)
    own = load_tokenizer(folder, trust_remote_code=context.trust_remote_code)
    assert own.pad_token_id is not None, "load_tokenizer falls back to EOS"
    pad, statistics = int(own.pad_token_id), _statistics(folder)
    apart = why_apart(folder, context)
    if apart is None:
        tokens = _tokens(label, own, context.policy, context, name)
        return SharedAdapterReward(label, folder, tokens, context, statistics, pad_token_id=pad)
    model: Any = load_score_model(
        folder, dtype=context.dtype, trust_remote_code=context.trust_remote_code
    )
    hold_frozen(model, context.frozen_dtype, context.precision)
    model.config.pad_token_id = pad  # transformers finds the last token by it
    model.requires_grad_(False).to(context.device)
    tokens = _tokens(label, own, model, context, name)
    reward = ModelReward(label, RewardScorer(model, pad), tokens, context, statistics)
    if context.policy is not None and is_adapter(Path(folder)):
        reward.findings.append(f"reward {label} takes a model's memory of its own: {apart}")
    return reward


def _tokens(
    label: str, own: PreTrainedTokenizerBase, model: Any, context: ModelContext, name: str
) -> RewardTokens:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return RewardTokens(
        label,
        own,
        context.tokenizer,
        end_token_ids=end_token_ids(model),
        max_length=min(positions or UNBOUNDED, own.model_max_length, UNBOUNDED),
        reads_plain=context.reads_plain(name),
    )


def _statistics(name: str) -> Statistics | None:
    """Those that lie beside the weights, in a folder or on the hub."""
    file: Any = cached_file(
        name,
        STATISTICS,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return None
    known = json.loads(Path(file).read_text(encoding="utf-8"))
    return Statistics(float(known["mean"]), float(known["std"]))


def _label(name: str) -> str:
    """The last part of a path or hub id that says something."""
    parts = [part for part in Path(name).absolute().parts if part != "model"]
    return parts[-1]
