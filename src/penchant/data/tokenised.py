"""Token ids of what is not a pair: labels, and prompts to be answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penchant.data.batch import Group

if TYPE_CHECKING:
    from penchant.data.prompts import Prompt


@dataclass(frozen=True, slots=True)
class TokenisedLabel:
    """Token ids of one judged completion; `where` and `asked` as of a `TokenisedPair`."""

    prompt: Sequence[int]
    completion: Sequence[int]
    desirable: bool
    where: str
    asked: Sequence[int] | None = None

    def group(self) -> Group:
        """For the batch: a prompt with one completion."""
        return Group(self.prompt, (self.completion,))


@dataclass(frozen=True, slots=True)
class TokenisedPrompt:
    """Token ids of one prompt, with the record they come from; `where` names its row."""

    prompt: list[int]
    record: Prompt
    where: str
    asked: None = None

    def group(self, completions: Sequence[Sequence[int]] = ()) -> Group:
        """For the batch: the prompt with completions sampled after it."""
        return Group(self.prompt, tuple(completions))
