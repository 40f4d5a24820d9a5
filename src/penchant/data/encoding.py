"""Texts of many records, encoded in one call: tokenizers work on a batch in several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeVar

from penchant.data.records import Label, Pair, Record, Text
from penchant.data.token_report import Dropped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from penchant.data.batch import Group
    from penchant.data.token_report import TokenReport

# Stands for a message's text where only what a template puts around it is wanted.
PLACEHOLDER = "\x00text\x00"
# Records whose texts are encoded together.
AT_ONCE = 256

Written = tuple[str, list[tuple[str, bool]]]
"""A prompt's text, and each completion's after it, with whether the template writes it there."""


class Example(Protocol):
    """What records are tokenised to."""

    def group(self) -> Group:
        """For the batch."""


Item = TypeVar("Item")
R = TypeVar("R", bound=Record)
E = TypeVar("E", bound=Example)


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def in_chunks(
    records: Iterable[R],
    ahead: Callable[[Sequence[R]], None],
    tokenise: Callable[[R, TokenReport], E],
    report: TokenReport,
) -> tuple[list[E], TokenReport]:
    """Tokenise record by record; `ahead` does for a chunk what is quicker for many at once.

    The report, which is returned too, says what became of them.
    """
    examples: list[E] = []
    for some in chunked(records, AT_ONCE):
        ahead(some)
        for record in some:
            try:
                examples.append(tokenise(record, report))
            except Dropped as reason:
                report.dropped[str(reason)] = report.dropped.get(str(reason), 0) + 1
                report.dropped_examples.setdefault(str(reason), record.where)
    ahead([])
    groups = [example.group() for example in examples]
    report.num_examples = len(examples)
    report.longest_prompt = max((len(group.prompt) for group in groups), default=0)
    lengths = (len(ids) for group in groups for ids in group.completions)
    report.longest_completion = max(lengths, default=0)
    return examples, report


def completions_of(record: Record) -> tuple[Text, ...]:
    """The completions that a record holds, in their order."""
    if isinstance(record, Pair):
        return record.chosen, record.rejected
    return (record.completion,) if isinstance(record, Label) else ()


class Encoder:
    """Token ids of texts, of which some were encoded before they are asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._known: dict[tuple[str, bool], list[int]] = {}

    def __call__(self, text: str, *, special: bool) -> list[int]:
        """Of one text, with at most one BOS token; the caller may change the list."""
        known = self._known.get((text, special))
        if known is not None:
            return list(known)
        ids = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return self._once_begun(ids)

    def ahead(self, texts: Sequence[str], *, special: bool) -> None:
        """Encode texts that are asked for next; those before are forgotten."""
        self._known = {key: ids for key, ids in self._known.items() if key[1] != special}
        if not texts:
            return
        distinct = list(dict.fromkeys(texts))
        every = self.tokenizer(distinct, add_special_tokens=special, verbose=False)["input_ids"]
        for text, ids in zip(distinct, every, strict=True):
            self._known[text, special] = self._once_begun(ids)

    def _once_begun(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


class Ahead:
    """Texts that were written before they are asked for, by the identity of what they are of."""

    def __init__(self) -> None:
        # The messages are held, so that nothing else gets their identity meanwhile.
        self._known: dict[tuple[int, ...], tuple[Text, Sequence[Text], Written]] = {}

    def keep(self, prompt: Text, completions: Sequence[Text], written: Written) -> None:
        """Keep what was written of a prompt and its completions."""
        self._known[_key(prompt, completions)] = prompt, completions, written

    def take(self, prompt: Text, completions: Sequence[Text]) -> Written | None:
        """What was written of them, once."""
        known = self._known.pop(_key(prompt, completions), None)
        return None if known is None else known[2]


def _key(prompt: Text, completions: Sequence[Text]) -> tuple[int, ...]:
    return (id(prompt), *map(id, completions))
