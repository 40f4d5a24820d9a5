"""Shallow cues: traits of a completion that may tell the preferred one without its content."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from penchant.data.patterns import finder

# Refusals show at the beginning, and a list shows in a few lines.
OPENING_CHARACTERS = 240
NUM_OPENING_WORDS = 2

WORD = re.compile(r"\w+")
REFUSAL = re.compile(
    r"\bI(?:'m| am|’m) (?:sorry|afraid|unable|not able)\b"
    r"|\bI (?:can(?:no|'|’)t|won(?:'|’)t) (?:help|assist|provide|answer|do|give|support|comply)"
    r"|\b[Aa]s an? (?:AI|language model)\b"
    r"|\bI (?:apologi[sz]e|must decline)\b|\bnot (?:appropriate|comfortable)\b"
)
EMOJI = re.compile("[\u2600-\u27bf\u2b50\U0001f1e6-\U0001faff]")
END = re.compile(r"[.!?…。！？:;)\]}\"'”’`*|>]\s*\Z")


# Each says of one completion whether it has the trait.
CUES: Mapping[str, Callable[[str], bool]] = {
    "markdown": finder(
        r"^ {0,3}(?:#{1,6} |> )|\*\*[^*\n]+\*\*|\[[^\]\n]+\]\(http", "# ", "> ", "**", "](http"
    ),
    "list": finder(r"^ {0,3}(?:[-*+•] |\d{1,2}[.)] )", "- ", "* ", "+ ", "• ", ". ", ") "),
    "code": finder(r"^ {0,3}(?:```|~~~)", "```", "~~~"),
    "refusal": lambda text: REFUSAL.search(text, 0, OPENING_CHARACTERS) is not None,
    "emoji": lambda text: not text.isascii() and EMOJI.search(text) is not None,
    "exclamation": lambda text: "!" in text,
    "question": lambda text: text.rstrip().endswith("?"),
    "unfinished": lambda text: END.search(text[-20:]) is None,
}


def bits(tests: Mapping[str, Callable[[str], bool]], text: str) -> int:
    """Which of some patterns are in a text, the first as the lowest bit."""
    return sum(1 << bit for bit, test in enumerate(tests.values()) if test(text))


def opening(text: str) -> str:
    """The first words of a text, in lower case."""
    return " ".join(WORD.findall(text[:OPENING_CHARACTERS].lower())[:NUM_OPENING_WORDS])
