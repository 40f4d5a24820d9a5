"""What tokenising makes of records, and what it changed or left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from penchant.data.rows.row import shown

LossOnTurns = Literal["assistant", "last", "all"]


class TemplateRefusal(ValueError):  # noqa: N818
    """A chat template does not write these messages; the text is what it says."""


@dataclass
class TokenReport:
    """What tokenising changed or left out, for the screen and the run directory."""

    noun: str = "examples"
    num_examples: int = 0
    prompts_cut: int = 0
    completions_cut: int = 0
    tokenised_apart: int = 0
    # Answers that the template does not render as its generation prompt begins them.
    placed_apart: int = 0
    # Examples of which the template left something out, by what that is, and the first of each.
    lost: dict[str, int] = field(default_factory=dict)
    lost_examples: dict[str, str] = field(default_factory=dict)
    # Examples left out because the template rewrites earlier turns of an answer, and the first.
    rewritten: int = 0
    rewritten_example: str = ""
    # No Counter: dataclasses.asdict would make one of its items.
    dropped: dict[str, int] = field(default_factory=dict)
    dropped_examples: dict[str, str] = field(default_factory=dict)
    # Examples with an option that the template does not read, by its name.
    unread: dict[str, int] = field(default_factory=dict)
    longest_prompt: int = 0
    longest_completion: int = 0

    def summary(self) -> str:
        """One line, naming only what happened."""
        completions = f", longest completion {self.longest_completion}"
        parts = [
            f"{self.num_examples} {self.noun} tokenised; longest prompt {self.longest_prompt}"
            f"{completions if self.longest_completion else ''} tokens"
        ]
        counted = {
            "prompts cut on the left (max_prompt_length)": self.prompts_cut,
            "completions cut on the right (max_length)": self.completions_cut,
            f"{self.noun} whose prompt and completion were tokenised apart": self.tokenised_apart,
            **{
                f"{self.noun} of which the chat template leaves out text of {what} (such as "
                f"{self.lost_examples[what]})": n
                for what, n in self.lost.items()
            },
            **{
                f"{self.noun} whose chat_template_kwargs have {name}, which the chat template "
                "does not read": n
                for name, n in self.unread.items()
            },
            **{
                f"{self.noun} dropped: {reason} (such as {self.dropped_examples[reason]})": n
                for reason, n in self.dropped.items()
            },
        }
        return "; ".join(parts + [f"{n} {what}" for what, n in counted.items() if n])

    def add_lost(self, parts: Iterable[tuple[str, str]], where: str) -> None:
        """Count one example for each kind of part that the template left out of it."""
        for what, part in dict(parts).items():
            self.lost[what] = self.lost.get(what, 0) + 1
            self.lost_examples.setdefault(what, f"{where}: {shown(part.strip())}")


class Dropped(Exception):  # noqa: N818
    """An example cannot be trained on; the text is the reason, by which these are counted."""


@dataclass
class Encoded:
    """Token ids of one prompt and its completions, and what became of them on the way.

    Attributes:
        prompt, completions: not cut; a completion of several turns says which are trained on.
        lost: what the template has left out: its kind, and its text.
        placed_apart: an answer is not rendered as the generation prompt begins it.
        tokenised_apart: prompt and completions were encoded each alone.
        asked: the prompt as a model is asked it, where that is not `prompt`.
    """

    prompt: list[int]
    completions: list[Sequence[int]]
    lost: list[tuple[str, str]]
    placed_apart: bool = False
    tokenised_apart: bool = False
    asked: list[int] | None = None
