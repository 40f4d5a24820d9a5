"""What a reward judges: one sampled answer with everything known about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from penchant.data.records import Messages, Text
from penchant.data.rows.messages import contents
from penchant.rl.sampling.text import answer_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from penchant.rl.sampling.base import Completion

MAX_EXCERPT = 80


@dataclass(frozen=True)
class Sample:
    """One answer that the policy gave.

    Args:
        prompt: what was asked, a string or messages.
        completion: the answer's text, as `answer_text` gives it.
        prompt_ids, completion_ids: the same as the policy's token ids.
        ended: whether the model ended by itself; `completion_ids` then ends on the end token.
        fields: the other columns of the prompt's row.
        where: the file and row of the prompt, such as `prompts.jsonl:17`.
        rendered: the prompt as the policy read it: with the chat template and its special tokens.
        as_chat: the prompt as messages, where it is a string that the policy was asked as a chat;
            what reward models with a chat template read.
        number: of the prompt within its batch, in which a row may come up twice.
    """

    prompt: Text
    completion: str
    prompt_ids: list[int]
    completion_ids: list[int]
    ended: bool
    fields: Mapping[str, Any]
    where: str
    rendered: str = ""
    as_chat: Messages | None = None
    number: int = 0

    def describe(self) -> str:
        """Its place, and the last of its prompt on one short line."""
        text = " ".join(contents(self.prompt)[-1].split())
        if len(text) > MAX_EXCERPT:
            text = f"{text[: MAX_EXCERPT - 3]}..."
        return f"{self.where} (prompt {text!r})"


class Asked(Protocol):
    """A prompt with the row that it comes from."""

    @property
    def prompt(self) -> Text:
        """A string or messages."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The other columns of its row."""

    @property
    def where(self) -> str:
        """The file and row."""


def make_sample(
    asked: Asked,
    prompt_ids: list[int],
    completion: Completion,
    tokenizer: PreTrainedTokenizerBase,
    number: int = 0,
) -> Sample:
    """What the rewards judge of one answer.

    Args:
        asked: the prompt.
        prompt_ids: the prompt as the policy read it.
        completion: the answer.
        tokenizer: the policy's.
        number: of the prompt within its batch.
    """
    return Sample(
        prompt=asked.prompt,
        completion=answer_text(completion.ids, tokenizer, ended=completion.ended),
        prompt_ids=prompt_ids,
        completion_ids=completion.ids,
        ended=completion.ended,
        fields=asked.fields,
        where=asked.where,
        rendered=str(tokenizer.decode(prompt_ids)),
        number=number,
    )


class MissingScoresError(Exception):
    """Some samples have no score, and to ask for them again would not help.

    Attributes:
        scores: `[samples]`, NaN where there is none.
        reasons: why there is none, by the sample's index.
    """

    def __init__(self, scores: list[float], reasons: dict[int, str]) -> None:
        super().__init__(next(iter(reasons.values())))
        self.scores, self.reasons = scores, reasons


class Reward(Protocol):
    """Anything that scores samples."""

    @property
    def name(self) -> str:
        """By which metrics and messages call it."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample; NaN where there is none."""
