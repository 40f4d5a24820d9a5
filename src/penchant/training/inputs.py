"""What a run trains on: reading, splitting, tokenising, and what a method asks of the examples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penchant.core.errors import ConfigError
from penchant.core.screen import track
from penchant.data.prompts import Prompt, read_prompts
from penchant.data.read import read_labels, read_pairs
from penchant.data.records import Data, Label, Pair
from penchant.data.split import shared_prompts, split_by_prompt
from penchant.data.tokenise import (
    TokenisedLabel,
    TokenisedPair,
    TokenisedPrompt,
    Tokeniser,
    TokenReport,
)
from penchant.models.load import end_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from penchant.config.keys import RunConfig

logger = logging.getLogger("penchant")

Record = Pair | Label | Prompt
Example = TokenisedPair | TokenisedLabel | TokenisedPrompt


@dataclass(frozen=True)
class RunData:
    """What a run trains on and is held against."""

    train: Sequence[Record]
    evaluation: Sequence[Record]
    sources: list[Data[Any]]
    shared_prompts: int


def read_run_data(config: RunConfig, data: Any, eval_data: Any) -> RunData:
    """Read and split; says what was read and left out."""
    source = _read(config, data)
    records = source.records
    if eval_data is not None:
        held_out = _read(config, eval_data)
        shared = shared_prompts(records, held_out.records)
        if shared:
            logger.warning(
                "%d of %d held-out records have a prompt that is also trained on: accuracy will "
                "flatter", shared, len(held_out.records),
            )  # fmt: skip
        return RunData(records, held_out.records, [source, held_out], shared)
    if config.train_fraction is None:
        return RunData(records, [], [source], 0)
    train, evaluation = split_by_prompt(records, config.train_fraction, config.seed)
    return RunData(train, evaluation, [source], 0)


def read_records(config: RunConfig, data: Any) -> Sequence[Record]:
    """The records of one source, of the kind that the method learns from."""
    return _read(config, data).records


def _read(config: RunConfig, data: Any) -> Data[Any]:
    source: Data[Any]
    if config.spec.samples:
        source = read_prompts(data, strict=config.strict)
    elif config.spec.data == "labels":
        source = read_labels(data, strict=config.strict, unpair=config.unpair)
    else:
        source = read_pairs(data, strict=config.strict)
    logger.info("%s", source.summary())
    return source


def make_tokeniser(config: RunConfig, tokenizer: PreTrainedTokenizerBase, model: Any) -> Tokeniser:
    """The tokeniser of a run, with the model's own end tokens."""
    return Tokeniser(
        tokenizer,
        end_token_ids=end_token_ids(model),
        max_length=config.max_length,
        max_prompt_length=config.prompt_budget,
    )


def require_mismatches(config: RunConfig, examples: Sequence[Any]) -> None:
    """Refuse what no mismatched completion can be found for."""
    if not config.spec.needs(config.options).mismatches:
        return
    if config.per_device_train_batch_size * config.gradient_accumulation_steps == 1:
        raise ConfigError(
            f"{config.method} estimates its KL term from the other completions of a step, and a "
            "step of one has none: the term would equal the reward it is compared with; raise "
            "per_device_train_batch_size or gradient_accumulation_steps"
        )
    if all(example.prompt == examples[0].prompt for example in examples):
        raise ConfigError(
            f"{config.method} estimates its KL term from completions of other prompts, but all "
            "records have the same prompt; add records with other prompts"
        )


def require_margins(examples: Sequence[TokenisedPair]) -> None:
    """Refuse a record that does not say how much better its chosen completion is."""
    for example in examples:
        if example.margin is None:
            raise ConfigError(
                f"use_margins needs a margin in every record, and {example.where} has none; add "
                "margin (or score_chosen and score_rejected) to it, or drop use_margins"
            )


def tokenise(
    records: Sequence[Record], tokeniser: Tokeniser, name: str
) -> tuple[list[Any], TokenReport]:
    """Tokenise one side of the data and say what was cut or dropped.

    Raises:
        ConfigError: nothing is left.
    """
    shown = track(records, f"tokenising {name}")
    examples: Sequence[Example]
    if isinstance(records[0], Label):
        examples, report = tokeniser.labels(shown)  # type: ignore[arg-type]
    elif isinstance(records[0], Prompt):
        examples, report = tokeniser.prompts(shown)  # type: ignore[arg-type]
    else:
        examples, report = tokeniser.pairs(shown)  # type: ignore[arg-type]
    logger.info("%s: %s", name, report.summary())
    if not examples:
        raise ConfigError(f"no {name} record is left after tokenising ({report.summary()})")
    return list(examples), report
