"""What a reward judges: one sampled answer with everything known about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from penchant.data.records import Text
from penchant.data.rows.messages import contents

MAX_EXCERPT = 80


@dataclass(frozen=True)
class Sample:
    """One answer that the policy gave.

    Args:
        prompt: what was asked, a string or messages.
        completion: the answer, decoded without special tokens.
        prompt_ids, completion_ids: the same as the policy's token ids.
        ended: whether the model ended by itself; `completion_ids` then ends on the end token.
        fields: the other columns of the prompt's row.
        where: the file and row of the prompt, such as `prompts.jsonl:17`.
    """

    prompt: Text
    completion: str
    prompt_ids: list[int]
    completion_ids: list[int]
    ended: bool
    fields: Mapping[str, Any]
    where: str

    def describe(self) -> str:
        """Its place, and the last of its prompt on one short line."""
        text = " ".join(contents(self.prompt)[-1].split())
        if len(text) > MAX_EXCERPT:
            text = f"{text[: MAX_EXCERPT - 3]}..."
        return f"{self.where} (prompt {text!r})"


class Reward(Protocol):
    """Anything that scores samples."""

    @property
    def name(self) -> str:
        """By which metrics and messages call it."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample; NaN where there is none."""
