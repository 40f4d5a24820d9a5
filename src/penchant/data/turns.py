"""Completions of several turns as tokens, and which of these the assistant says: the loss mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Protocol

from penchant.data.batch import Spans, Turns
from penchant.data.chats import marked_tokens
from penchant.data.records import Message, Messages, Text
from penchant.data.rendered import lost_parts
from penchant.data.rows.messages import said
from penchant.data.rows.row import shown
from penchant.data.token_report import Dropped, Encoded, LossOnTurns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoder(Protocol):
    """What is asked of a `Tokeniser`."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: set[int]
    loss_on_turns: LossOnTurns

    def render(self, messages: Messages, *, generation_prompt: bool) -> str: ...
    def encode(self, text: str, *, special: bool) -> list[int]: ...
    def prompt_ids(self, prompt: Text) -> list[int]: ...
    def single(self, prompt: Text, completions: Sequence[Text]) -> Encoded: ...
    def finish(self, ids: list[int]) -> list[int]: ...
    def end_of(self, ids: Sequence[int]) -> int | None: ...


class Rewritten(Dropped):
    """A template writes an earlier turn otherwise once another follows; `turn` shows it."""

    def __init__(self, message: Message) -> None:
        super().__init__(
            "the chat template rewrites earlier turns once others follow, and loss_on_turns is "
            "assistant"
        )
        self.turn = shown(" ".join(said(message).split()))


def encode_turns(tokeniser: Encoder, prompt: Messages, completions: Sequence[Messages]) -> Encoded:
    """Token ids of a prompt and of completions, some of which have several turns.

    Args:
        tokeniser: whose `loss_on_turns` says which turns are trained on.
        prompt: what all completions continue.
        completions: each starts and ends with the assistant.

    Raises:
        Rewritten: the chat as far as one turn is not the beginning of the whole, so that no one
            row of tokens has all turns as they are sampled.
        Dropped: the template's marks of what is generated say nothing, or cannot be placed.
        TemplateRefusal: the template does not write the messages.
    """
    if tokeniser.loss_on_turns == "assistant":
        return _assistant_turns(tokeniser, prompt, completions)
    if tokeniser.loss_on_turns == "last":
        return _last_turns(tokeniser, prompt, completions)
    return _whole_chats(tokeniser, prompt, completions)


def _assistant_turns(
    tokeniser: Encoder, prompt: Messages, completions: Sequence[Messages]
) -> Encoded:
    before = tokeniser.render(prompt, generation_prompt=True)
    encoded = Encoded(
        tokeniser.prompt_ids(prompt), [], list(lost_parts(prompt, before, answer=False))
    )
    chats = [_Chat.of(tokeniser, prompt, one) for one in completions]
    pieces = [_together(tokeniser, chat) for chat in chats]
    encoded.tokenised_apart = None in pieces
    for chat, completion, together in zip(chats, completions, pieces, strict=True):
        encoded.lost += lost_parts(completion, chat.text[len(before) :], answer=True)
        apart = [tokeniser.encode(text, special=False) for text in chat.pieces()]
        parts = apart if encoded.tokenised_apart or together is None else together
        turns = _masked(tokeniser, parts)
        if len(completion) == 1:
            encoded.completions.append(turns.ids)
            continue
        messages = (*prompt, *completion)
        marks = marked_tokens(tokeniser.tokenizer, messages, chat.text, tokeniser.encode)
        if marks is not None:
            whole = [*encoded.prompt, *(token for part in parts for token in part)]
            turns = _marked(tokeniser, turns, marks, whole, len(encoded.prompt))
        encoded.completions.append(turns)
    return encoded


@dataclass(frozen=True)
class _Chat:
    """A rendered chat, and where in its text the turns of the assistant stand, first to last."""

    text: str
    bounds: list[tuple[int, int]]

    @classmethod
    def of(cls, tokeniser: Encoder, prompt: Messages, completion: Messages) -> _Chat:
        """Compare the chat as far as each turn with the whole."""
        text = tokeniser.render((*prompt, *completion), generation_prompt=False)
        bounds = []
        for number, message in enumerate(completion):
            if message["role"] != "assistant":
                continue
            earlier = (*prompt, *completion[:number])
            begin = tokeniser.render(earlier, generation_prompt=True)
            end = tokeniser.render((*earlier, message), generation_prompt=False)
            if not (text.startswith(begin) and text.startswith(end) and len(begin) < len(end)):
                raise Rewritten(message)
            bounds.append((len(begin), len(end)))
        return cls(text, bounds)

    def pieces(self) -> list[str]:
        """The completion, cut where the speaker changes: the assistant at 0, 2, 4, ..."""
        cuts = [at for bound in self.bounds for at in bound]
        return [self.text[a:b] for a, b in pairwise(cuts)]


def _together(tokeniser: Encoder, chat: _Chat) -> list[list[int]] | None:
    """The tokens of the pieces as parts of the whole; None where two pieces merge in a token."""
    whole = tokeniser.encode(chat.text, special=False)
    cuts = []
    for at in (at for bound in chat.bounds for at in bound):
        head = tokeniser.encode(chat.text[:at], special=False)
        if whole[: len(head)] != head:
            return None
        cuts.append(len(head))
    parts = [whole[a:b] for a, b in pairwise(cuts)]
    return parts if all(parts) else None


def _masked(tokeniser: Encoder, parts: Sequence[list[int]]) -> Turns:
    """Join the pieces; each turn of the assistant counts as far as its end token."""
    ids: list[int] = []
    spans = []
    for number, part in enumerate(parts):
        if number == len(parts) - 1:
            part = tokeniser.finish(part)
        if number % 2 == 0:
            end = tokeniser.end_of(part)
            spans.append((len(ids), len(ids) + (len(part) if end is None else end)))
        ids += part
    return Turns(ids, tuple(spans))


def _marked(
    tokeniser: Encoder,
    turns: Turns,
    marks: tuple[list[int], list[int]],
    whole: list[int],
    start: int,
) -> Turns:
    """Of the assistant's tokens those that the template marks as generated, with the end token.

    Args:
        turns: of a completion, all that the assistant says.
        marks: the chat's tokens, and of each whether it is marked.
        whole: the chat's tokens as they are trained on, which the marks must fit.
        start: where the completion begins.
    """
    tokens, flags = marks
    if tokens != whole:
        raise Dropped("the chat template's generation marks could not be placed on the tokens")
    spans: list[tuple[int, int]] = []
    for first, last in turns.trained:
        inside = [at for at in range(first, last) if start + at >= len(flags) or flags[start + at]]
        if inside and inside[-1] + 1 < last and turns[inside[-1] + 1] in tokeniser.end_ids:
            inside.append(inside[-1] + 1)
        spans += _runs(inside)
    if not spans:
        raise Dropped("the chat template's generation marks name no token of the assistant's")
    return Turns(turns.ids, tuple(spans))


def _runs(numbers: Sequence[int]) -> Spans:
    """Numbers in rising order as half-open ranges."""
    starts = [n for i, n in enumerate(numbers) if not i or numbers[i - 1] != n - 1]
    ends = [n + 1 for i, n in enumerate(numbers) if numbers[i + 1 : i + 2] != [n + 1]]
    return tuple(zip(starts, ends, strict=True))


def _last_turns(tokeniser: Encoder, prompt: Messages, completions: Sequence[Messages]) -> Encoded:
    """The last turns alone: each is what a row gives whose prompt holds all that is before it."""
    rows = [tokeniser.single((*prompt, *one[:-1]), (one[-1:],)) for one in completions]
    contexts = [row.prompt for row in rows]
    answers = [row.completions[0] for row in rows]
    shared = _num_shared(contexts)
    joined: list[Sequence[int]] = []
    for context, answer in zip(contexts, answers, strict=True):
        between = context[shared:]
        whole = [*between, *answer]
        joined.append(Turns(whole, ((len(between), len(whole)),)) if between else answer)
    return Encoded(
        contexts[0][:shared],
        joined,
        [part for row in rows for part in row.lost],
        any(row.placed_apart for row in rows),
        any(row.tokenised_apart for row in rows),
        tokeniser.prompt_ids(prompt),
    )


def _whole_chats(tokeniser: Encoder, prompt: Messages, completions: Sequence[Messages]) -> Encoded:
    """Whole chats, as a reward model reads them, after the beginning that they share."""
    lost: list[tuple[str, str]] = []
    wholes: list[list[int]] = []
    for completion in completions:
        text = tokeniser.render((*prompt, *completion), generation_prompt=False)
        lost += lost_parts((*prompt, *completion[:-1]), text, answer=False)
        lost += lost_parts(completion[-1:], text, answer=True)
        wholes.append(tokeniser.finish(tokeniser.encode(text, special=False)))
    shared = min(_num_shared(wholes), *(len(ids) - 1 for ids in wholes))
    if len(wholes) == 1:
        shared = min(shared, len(tokeniser.prompt_ids(prompt)))
    return Encoded(wholes[0][:shared], [ids[shared:] for ids in wholes], lost)


def _num_shared(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    return sum(1 for _ in takewhile(lambda column: len({*column}) == 1, zip(*rows, strict=False)))
