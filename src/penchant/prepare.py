"""From a configuration to data, model and reference that are ready for the loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penchant.data.read import read_pairs
from penchant.data.records import Pair, PairData
from penchant.data.split import shared_prompts, split_by_prompt
from penchant.data.tokenise import PairTokeniser, TokenisedPair, TokenReport
from penchant.errors import ConfigError, ModelError
from penchant.models.load import (
    DTYPES,
    default_cache_dir,
    end_token_ids,
    load_causal_model,
    resolve,
)
from penchant.models.lora import add_lora
from penchant.models.reference import (
    AdapterReference,
    CachedReference,
    CopyReference,
    Reference,
    frozen_copy,
)
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.runtime import memory_available_bytes, track

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from penchant.config import RunConfig

logger = logging.getLogger("penchant")


@dataclass(frozen=True)
class RunData:
    """What a run trains on and is held against."""

    train: list[Pair]
    evaluation: list[Pair]
    sources: list[PairData]
    shared_prompts: int


def read_run_data(config: RunConfig, data: Any, eval_data: Any) -> RunData:
    """Read and split; says what was read and left out."""
    source = read_pairs(data, strict=config.strict)
    logger.info("%s", source.summary())
    if eval_data is not None:
        held_out = read_pairs(eval_data, strict=config.strict)
        logger.info("%s", held_out.summary())
        shared = shared_prompts(source.pairs, held_out.pairs)
        if shared:
            logger.warning(
                "%d of %d held-out pairs have a prompt that is also trained on: accuracy will "
                "flatter", shared, len(held_out.pairs),
            )  # fmt: skip
        return RunData(source.pairs, held_out.pairs, [source, held_out], shared)
    if config.train_fraction is None:
        return RunData(source.pairs, [], [source], 0)
    train, held_out_pairs = split_by_prompt(source.pairs, config.train_fraction, config.seed)
    return RunData(train, held_out_pairs, [source], 0)


def tokenise(
    pairs: Sequence[Pair], tokeniser: PairTokeniser, name: str
) -> tuple[list[TokenisedPair], TokenReport]:
    """Tokenise one side of the data and say what was cut or dropped.

    Raises:
        ConfigError: nothing is left.
    """
    examples, report = tokeniser(track(pairs, f"tokenising {name}"))
    logger.info("%s: %s", name, report.summary())
    if not examples:
        raise ConfigError(f"no {name} pair is left after tokenising ({report.summary()})")
    return examples, report


def load_policy(config: RunConfig, precision: str) -> Any:
    """The model to train: all weights in fp32, or a frozen base with a fresh adapter."""
    dtype = DTYPES["fp32"]
    if config.dtype != "auto":
        dtype = DTYPES[config.dtype]
    elif config.lora_r and precision == "bf16":
        dtype = DTYPES["bf16"]
    model: Any = load_causal_model(
        resolve(config.model, config.cache_dir),
        dtype=dtype,
        trust_remote_code=config.trust_remote_code,
    )
    if not config.lora_r:
        return model.requires_grad_(True)
    return add_lora(
        model,
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=config.lora_target_modules,
    )


def make_tokeniser(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, model: Any
) -> PairTokeniser:
    """The tokeniser of a run, with the model's own end tokens."""
    return PairTokeniser(
        tokenizer,
        end_token_ids=end_token_ids(model),
        max_length=config.max_length,
        max_prompt_length=config.prompt_budget,
    )


def choose_reference(config: RunConfig, policy: Scorer) -> str:
    """What `reference: auto` means for this run."""
    if config.reference != "auto":
        return config.reference
    if config.lora_r and not config.reference_model:
        return "adapter"
    if config.num_train_epochs > 1 or not _copy_fits(policy):
        return "cache"
    return "copy"


def make_reference(
    config: RunConfig,
    policy: Scorer,
    examples: Sequence[TokenisedPair],
    accelerator: Accelerator,
    precision: str,
) -> Reference:
    """The reference of a run; a cache is filled here, before training.

    Args:
        policy: still as it was loaded: it is the reference, unless another was named.
        examples: every pair that will be scored, held-out ones too.
    """
    kind = choose_reference(config, policy)
    if kind == "adapter":
        return AdapterReference(policy)
    held = (
        _other_reference(config, policy, examples, accelerator) if config.reference_model else None
    )
    if kind == "copy":
        return held or frozen_copy(policy)
    scorer = policy
    if held is not None:
        with held.active() as active:
            scorer = active
    folder = (config.cache_dir or default_cache_dir()) / "reference"
    label = f"{scorer.causal_model.dtype}-{precision}".removeprefix("torch.")
    reference = CachedReference(folder, scorer.causal_model, label)
    scorer.eval()
    with accelerator.autocast():
        missing = reference.fill(
            [example.group() for example in examples],
            scorer,
            batch_size=config.per_device_eval_batch_size,
            progress=track,
        )
    logger.info("reference cache %s: %d completions scored now", reference.path, missing)
    return reference


def _other_reference(
    config: RunConfig, policy: Scorer, examples: Sequence[TokenisedPair], accelerator: Accelerator
) -> CopyReference:
    assert config.reference_model is not None
    model: Any = load_causal_model(
        resolve(config.reference_model, config.cache_dir),
        dtype=policy.causal_model.dtype,
        trust_remote_code=config.trust_remote_code,
    )
    ours, theirs = policy.causal_model.config, model.config
    if ours.get_text_config().vocab_size != theirs.get_text_config().vocab_size:
        raise ModelError(
            f"reference_model has a vocabulary of {theirs.get_text_config().vocab_size} tokens, "
            f"the model {ours.get_text_config().vocab_size}; they must share a tokenizer"
        )
    scorer = Scorer(model.to(accelerator.device), policy.pad_token_id)
    with accelerator.autocast():
        plan_scoring(
            scorer,
            [example.group() for example in examples[:2]],
            attention=config.attention,
            max_length=config.max_length,
        )
    return CopyReference(scorer)


def _copy_fits(policy: Scorer) -> bool:
    """Whether a frozen copy fits beside gradients and AdamW's two moments."""
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    return 4.5 * weights < memory_available_bytes(policy.causal_model.device)
