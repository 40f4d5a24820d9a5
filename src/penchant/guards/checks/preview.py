"""One record as the model reads it: every token, and which of them the loss counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from penchant.data.batch import Spans, trained_spans
from penchant.guards.checks.gather import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 48  # tokens at either end of a part


@dataclass(frozen=True)
class Token:
    """One token of a record.

    Attributes:
        id: in the vocabulary.
        text: as it reads.
        special: BOS, EOS and the like, not text.
        loss: whether the loss counts it.
    """

    id: int
    text: str
    special: bool
    loss: bool


@dataclass(frozen=True)
class Part:
    """A prompt or a completion; `ends`: whether its last token ends an answer."""

    name: str
    tokens: tuple[Token, ...]
    ends: bool

    @property
    def title(self) -> str:
        """Its size, and what the loss makes of it."""
        if self.name == "prompt":
            return f"prompt, {len(self.tokens)} tokens, without loss"
        ends = "" if self.ends else ", cut: no end token"
        num = sum(token.loss for token in self.tokens)
        counted = "all" if num == len(self.tokens) else num
        return f"{self.name}, {len(self.tokens)} tokens, {counted} with loss{ends}"


@dataclass(frozen=True)
class Preview:
    """A record: its place in the data, and its parts in the order they are read."""

    where: str
    parts: tuple[Part, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def render(self) -> Group:
        """For a terminal: special tokens reversed, tokens with loss green and underlined."""
        lines = [Text(f"the first record ({self.where}), token by token", style="bold")]
        for part in self.parts:
            lines += [Text(part.title, style="dim"), _line(part.tokens)]
        legend = "⟨special⟩ token, ⏎ line break, │ between tokens"
        return Group(*lines, Text(legend, style="dim"))


def preview(
    example: Any, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int] = ()
) -> Preview:
    """Show a tokenised record.

    Args:
        example: a tokenised pair, label or prompt.
        tokenizer: that made it.
        end_ids: tokens at which the model's answers end.
    """
    group = example.group()
    ends = {tokenizer.eos_token_id, *end_ids}
    specials = {*special_ids(tokenizer), *ends}
    names = ("chosen", "rejected") if len(group.completions) == 2 else ("completion",)

    def part(name: str, ids: Sequence[int], trained: Spans) -> Part:
        tokens = tuple(
            Token(i, _text(i, tokenizer), i in specials, any(a <= at < b for a, b in trained))
            for at, i in enumerate(map(int, ids))
        )
        return Part(name, tokens, ends=bool(ids) and ids[-1] in ends)

    answers = zip(names, group.completions, strict=False)
    parts = [part("prompt", group.prompt, ())]
    parts += [part(name, ids, trained_spans(ids)) for name, ids in answers]
    return Preview(example.where, tuple(parts))


def _text(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a token adds to a text; SentencePiece decodes one alone without its space."""
    text = str(tokenizer.decode([token]))
    spaced = str(tokenizer.convert_ids_to_tokens(token)).startswith("▁")
    return f" {text}" if spaced and not text.startswith(" ") else text


def _line(tokens: Sequence[Token]) -> Text:
    line = Text("  ")
    middle = len(tokens) - 2 * SHOWN
    shown = tokens if middle <= 0 else (*tokens[:SHOWN], *tokens[-SHOWN:])
    for number, token in enumerate(shown):
        if number:
            line.append("│", style="dim")
        if middle > 0 and number == SHOWN:
            line.append(f" … {middle} tokens … ", style="dim")
        text = token.text.replace("\n", "⏎")
        style = "green underline" if token.loss else ""
        if token.special:
            text, style = f"⟨{text}⟩", f"{style} reverse".strip()
        line.append(text, style=style)
    return line
