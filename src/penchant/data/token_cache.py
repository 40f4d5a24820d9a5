"""Token ids of large data, kept on disk by content: a second run of the same data starts at once.

One safetensors file for each combination of records, tokenizer, chat template and lengths.
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from penchant.core.atomic import replacing
from penchant.core.screen import track
from penchant.data.batch import Turns
from penchant.data.records import Label, Pair, fingerprint
from penchant.data.token_ids import TYPE, TokenIds
from penchant.data.token_report import TokenReport
from penchant.data.tokenise import TokenisedPair
from penchant.data.tokenised import TokenisedLabel, TokenisedPrompt

if TYPE_CHECKING:
    from penchant.data.tokenise import Tokeniser

logger = logging.getLogger("penchant")

# Part of every name: raise it when the same records are tokenised otherwise than before.
TOKENISING = 1

Tokenised = tuple[Sequence[Any], TokenReport]


class Kind(Protocol):
    """What records are tokenised as; its name tells it from others."""

    def tokenise(self, tokeniser: Tokeniser, records: Any) -> Tokenised:
        """Examples of the records."""


def cached(
    folder: Path,
    records: Sequence[Any],
    tokeniser: Tokeniser,
    kind: Kind,
    name: str = "records",
) -> Tokenised:
    """What the kind makes of records, from the disk where an earlier run has made the same.

    A tokenizer that is none of the `tokenizers` library cannot be told from another one: what it
    makes is not kept.

    Args:
        folder: of the cache.
        records: that are tokenised.
        tokeniser: of the run.
        kind: of the data: what the records are tokenised as.
        name: of the records, for the screen.
    """

    def make() -> Tokenised:
        return kind.tokenise(tokeniser, track(records, f"tokenising {name}"))

    if not tokeniser.tokenizer.is_fast:
        return make()
    file = folder / f"{_key(records, tokeniser, type(kind).__name__)}.safetensors"
    if file.exists():
        try:
            found = _load(file, records)
        except SafetensorError as error:
            logger.warning("%s cannot be read (%s): it is made again", file, error)
        else:
            logger.info("token ids of %d examples read from %s", len(found[0]), file)
            return found
    examples, report = make()
    if examples:
        try:
            _save(file, examples, report, records)
        except (OSError, SafetensorError) as error:  # a full disk, or a folder of somebody else
            logger.warning(
                "token ids are not kept in %s (%s): set cache_dir to another folder, or "
                "token_cache to false",
                folder,
                error,
            )
        else:
            logger.info("token ids are kept in %s (token_cache: false keeps none)", file)
    return examples, report


def _key(records: Sequence[Any], tokeniser: Tokeniser, kind: str) -> str:
    """Everything that the token ids and the report of them depend on."""
    tokenizer: Any = tokeniser.tokenizer
    settings = [
        *(TOKENISING, version("transformers"), version("tokenizers"), kind),
        *(tokeniser.max_length, tokeniser.max_prompt_length, tokeniser.loss_on_turns),
        *(sorted(tokeniser.end_ids), tokenizer.bos_token_id, tokenizer.eos_token_id),
        *(tokenizer.chat_template, fingerprint(records)),
    ]
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for record in records:  # the report names places
        digest.update(f"{record.where}\n".encode())
    return digest.hexdigest()


def _save(file: Path, examples: Sequence[Any], report: TokenReport, records: Sequence[Any]) -> None:
    """Write examples, whole or not at all."""
    tokens = array(TYPE)
    lengths: list[int] = []
    spans: list[tuple[int, int, int]] = []  # of a sequence: its number, first and last token
    for example in examples:
        for ids in (example.prompt, *_completions(example), example.asked):
            if isinstance(ids, Turns):
                spans += [(len(lengths), begin, end) for begin, end in ids.trained]
            tokens.extend(() if ids is None else ids)
            lengths.append(-1 if ids is None else len(ids))
    tensors = {
        "tokens": torch.frombuffer(tokens, dtype=torch.int32),
        "lengths": torch.tensor(lengths, dtype=torch.int32),
        "spans": torch.tensor(spans, dtype=torch.int32).view(-1, 3),
        "records": torch.tensor(list(_numbers(examples, records)), dtype=torch.int32),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        save_file(tensors, partial, metadata={"report": json.dumps(asdict(report))})


def _load(file: Path, records: Sequence[Any]) -> Tokenised:
    with safe_open(file, framework="pt") as content:
        lengths, spans, numbers = (
            content.get_tensor(name).tolist() for name in ("lengths", "spans", "records")
        )
        # The file is mapped: what of it is not read just now, the system can take back.
        tokens = content.get_tensor("tokens").numpy()
        report = TokenReport(**json.loads(content.metadata()["report"]))
    trained: dict[int, list[tuple[int, int]]] = {}
    for number, begin, end in spans:
        trained.setdefault(number, []).append((begin, end))
    sequences: list[Any] = []
    start = 0
    for number, length in enumerate(lengths):
        ids: Any = None if length < 0 else TokenIds(tokens, start, start + length)
        start += max(length, 0)
        sequences.append(Turns(ids, tuple(trained[number])) if number in trained else ids)
    width = len(sequences) // len(numbers)
    examples = [
        _example(records[number], *sequences[i * width : (i + 1) * width])
        for i, number in enumerate(numbers)
    ]
    return examples, report


def _completions(example: Any) -> tuple[Any, ...]:
    if isinstance(example, TokenisedPair):
        return example.chosen, example.rejected
    return (example.completion,) if isinstance(example, TokenisedLabel) else ()


def _example(record: Any, prompt: Any, *rest: Any) -> Any:
    """The inverse of what `_save` takes apart; all else is the record's."""
    if isinstance(record, Pair):
        chosen, rejected, asked = rest
        return TokenisedPair(prompt, chosen, rejected, record.where, record.margin, asked)
    if isinstance(record, Label):
        completion, asked = rest
        return TokenisedLabel(prompt, completion, record.desirable, record.where, asked)
    return TokenisedPrompt(list(prompt), record, record.where)


def _numbers(examples: Sequence[Any], records: Sequence[Any]) -> Iterator[int]:
    """Which record each example is of: they are in the records' order, and some are left out."""
    at = 0
    for example in examples:
        while not _is_of(example, records[at]):
            at += 1
        yield at
        at += 1


def _is_of(example: Any, record: Any) -> bool:
    if isinstance(example, TokenisedPrompt):
        return example.record is record
    same = example.where == record.where
    if isinstance(example, TokenisedPair):
        return same and example.margin == record.margin
    return same and example.desirable == record.desirable
