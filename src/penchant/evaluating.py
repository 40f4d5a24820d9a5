"""`penchant.evaluate`: a model or a run against held-out pairs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from peft import PeftModel

from penchant.config import RunConfig, load_config
from penchant.data.read import read_pairs
from penchant.data.tokenise import TokenisedPair
from penchant.errors import ConfigError
from penchant.evaluation import Evaluation, evaluate_pairs
from penchant.methods import METHODS
from penchant.models.load import load_causal_model, load_tokenizer, resolve
from penchant.models.reference import AdapterReference, CopyReference, Reference
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.prepare import make_tokeniser, tokenise
from penchant.runtime import setup_logging, track

logger = logging.getLogger("penchant")

# What an evaluation takes from the run it evaluates.
RUN_KEYS = ("max_length", "max_prompt_length", "chat_template", "trust_remote_code")


def evaluate(
    *,
    model: str | Path,
    data: Any,
    reference: str | Path | None = None,
    batch_size: int = 8,
    **keys: Any,
) -> Evaluation:
    """Held-out accuracy, margin, log-probs and KL.

    Args:
        model: a run directory, a folder, a hub id, a .gguf file, or an adapter.
        data: held-out pairs, in any form that training reads.
        reference: the model it is compared with; default: what the run or adapter started from.
        batch_size: pairs a forward pass.
        keys: `max_length`, `max_prompt_length`, `chat_template`, `attention`, `strict`,
            `trust_remote_code`, or an option of the method (`beta`); default: the run's own.

    Raises:
        UserError: a wrong key, bad data, no reference to compare with.
    """
    setup_logging()
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}; set batch_size")
    config = _config(Path(model), {**keys, "model": str(model), "data": "evaluation"})
    pairs = read_pairs(data, strict=config.strict)
    logger.info("%s", pairs.summary())
    folder = resolve(str(model), config.cache_dir)
    tokenizer = load_tokenizer(
        folder, chat_template=config.chat_template, trust_remote_code=config.trust_remote_code
    )
    policy = _load(folder, config, keep_adapter=True)
    tokeniser = make_tokeniser(config, tokenizer, policy)
    examples, _ = tokenise(pairs.pairs, tokeniser, "held-out")
    assert tokenizer.pad_token_id is not None  # load_tokenizer falls back to EOS
    scorer = _planned(Scorer(policy, tokenizer.pad_token_id), examples, config)
    return evaluate_pairs(
        scorer,
        _compared_with(scorer, Path(model), reference, examples, config),
        examples,
        config.spec,
        config.options,
        batch_size=batch_size,
        progress=track,
    )


def _load(folder: str, config: RunConfig, *, keep_adapter: bool = False) -> Any:
    model: Any = load_causal_model(
        folder,
        dtype=torch.float32,
        trust_remote_code=config.trust_remote_code,
        keep_adapter=keep_adapter,
    )
    return model.to(Accelerator().device)


def _planned(scorer: Scorer, examples: list[TokenisedPair], config: RunConfig) -> Scorer:
    groups = [example.group() for example in examples[:2]]
    plan_scoring(scorer, groups, attention=config.attention, max_length=config.max_length)
    return scorer


def _compared_with(
    scorer: Scorer,
    model: Path,
    named: str | Path | None,
    examples: list[TokenisedPair],
    config: RunConfig,
) -> Reference:
    """The model that was named, or what the run or the adapter started from."""
    settings = _run_settings(model)
    named = named or settings.get("reference_model")
    if isinstance(scorer.model, PeftModel) and named is None:
        return AdapterReference(scorer)
    start = named or settings.get("model")
    if start is None:
        raise ConfigError(f"{model} says nothing about what it was tuned from; set reference")
    other = _load(resolve(str(start), config.cache_dir), config)
    return CopyReference(_planned(Scorer(other, scorer.pad_token_id), examples, config))


def _run_settings(model: Path) -> dict[str, Any]:
    file = model / "config.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}


def _config(model: Path, keys: dict[str, Any]) -> RunConfig:
    """The run's own settings where there is a run, under what the caller set."""
    settings = _run_settings(model)
    method = settings.get("method", "dpo")
    options = METHODS[method].options.model_fields
    own = {k: v for k, v in settings.items() if k in options or k in RUN_KEYS}
    return load_config(method, {**own, **{k: v for k, v in keys.items() if v is not None}})
