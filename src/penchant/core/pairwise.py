"""Two answers to one prompt before a judge, in both orders."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from penchant.core.asking import Reply
from penchant.core.endpoint import Endpoint
from penchant.core.judge import JudgeSettings, fill_rubric, read_rubric

RUBRIC = """Two answers to one request are below. Which is better? Consider whether they are \
right, helpful, complete, safe and no longer than they need to be; neither their order nor \
their length counts by itself. Explain in two sentences, then end with a line of the form \
"Verdict: A", "Verdict: B" or "Verdict: tie".

Request:
{prompt}

Answer A:
{completion_a}

Answer B:
{completion_b}
"""
# A prompt, with a good answer and a bad one.
TRIAL = ("Say yes.", "Yes.", "No.")
PLACES = ("{prompt}", "{completion_a}", "{completion_b}")
# The letter A is not the article of "a tie" or "a clear win for B".
VERDICT = re.compile(
    r"verdict\W{0,6}(?:a\W+(?=tie\b))?((?-i:A)|a(?![ \t]+[a-z])|B|tie)\b|\[\[(A|B|C|tie)\]\]",
    re.IGNORECASE,
)
# Choices that a judge repeats before the colon hold no verdict, as in "Verdict (A, B or tie): B".
CHOICES = re.compile(
    r"\s*[(\[][^()\[\]\n]*\bA\b[^()\[\]\n]*\bB\b[^()\[\]\n]*[)\]](?=\W{0,6}:)", re.IGNORECASE
)
SWAPPED = {"a": "b", "b": "a", "tie": "tie"}
Side = Literal["a", "b", "tie"]


@dataclass(frozen=True)
class Verdict:
    """What a judge found of two answers.

    Attributes:
        side: the better answer, `a` or `b`, or `tie`; None where the judge gave no verdict.
        reason: why it is a tie against the judge's words, or why there is none.
        contradicted: the verdict followed the order of the answers, so that it is a tie.
        half_preferred: one order preferred an answer and the other called it a tie, which it is
            then: what is better is so in both orders (Zheng et al. 2023,
            https://arxiv.org/abs/2306.05685, section 3.4).
    """

    side: Side | None
    reason: str = ""
    contradicted: bool = False
    half_preferred: bool = False

    @property
    def worth(self) -> float:
        """Of answer a: 1 where it is better, half a tie, NaN without a verdict; b has the rest."""
        return {"a": 1.0, "tie": 0.5, "b": 0.0, None: math.nan}[self.side]


def rubric_of(settings: JudgeSettings) -> str:
    """The rubric that a judge's file names, or the usual one.

    Raises:
        ConfigError: it cannot be read, or lacks a place for what is compared.
    """
    return RUBRIC if settings.rubric is None else read_rubric(settings.rubric, PLACES)


def try_judge(endpoint: Endpoint, rubric: str) -> None:
    """Have a judge compare two answers of no matter, before those that matter are made.

    Raises:
        ConfigError: it refuses every request, or gives no verdict.
    """
    endpoint.try_once(_chat(rubric, *TRIAL), read_verdict)


def judge_both_orders(
    endpoint: Endpoint, rubric: str, answers: Sequence[tuple[str, str, str]]
) -> list[Verdict]:
    """A verdict on each two answers, each shown in both orders; two that are the same are a tie.

    Args:
        endpoint: of the judge.
        rubric: with the `PLACES`.
        answers: prompt, answer a and answer b.

    Raises:
        ConfigError: the endpoint refuses every request.
    """
    chats = [
        _chat(rubric, prompt, first, second)
        for prompt, a, b in answers
        for first, second in ((a, b), (b, a))
        if a != b
    ]
    replies = iter(endpoint.ask(chats, read_verdict))
    return [
        Verdict("tie") if a == b else _decided(next(replies), next(replies)) for _, a, b in answers
    ]


def _chat(rubric: str, prompt: str, first: str, second: str) -> list[dict[str, str]]:
    return fill_rubric(rubric, {"prompt": prompt, "completion_a": first, "completion_b": second})


def read_verdict(text: str) -> str | None:
    """`a`, `b` or `tie`, as the text states last; None where it states none."""
    found = [(one or other).lower() for one, other in VERDICT.findall(CHOICES.sub("", text))]
    return {"c": "tie"}.get(found[-1], found[-1]) if found else None


def _decided(first: Reply[str], second: Reply[str]) -> Verdict:
    if first.value is None or second.value is None:
        return Verdict(None, first.reason or second.reason)
    said = f"{first.value}, then {second.value}"
    if first.value == SWAPPED[second.value]:
        return Verdict("a" if first.value == "a" else "b" if first.value == "b" else "tie")
    if first.value == second.value:
        return Verdict("tie", f"the verdict follows the order: {said}", contradicted=True)
    return Verdict("tie", f"preferred in one order only: {said}", half_preferred=True)
