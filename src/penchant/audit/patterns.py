"""What is searched for in texts: shallow cues, personal data, leftovers of chat templates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise

# Refusals show at the beginning, and a list shows in a few lines.
OPENING_CHARACTERS = 240
NUM_OPENING_WORDS = 2

WORD = re.compile(r"\w+")
# Scripts without spaces between words, a character each.
CHARACTER_OR_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u9fff]+")

REFUSAL = re.compile(
    r"\bI(?:'m| am|’m) (?:sorry|afraid|unable|not able)\b"
    r"|\bI (?:can(?:no|'|’)t|won(?:'|’)t) (?:help|assist|provide|answer|do|give|support|comply)"
    r"|\b[Aa]s an? (?:AI|language model)\b"
    r"|\bI (?:apologi[sz]e|must decline)\b|\bnot (?:appropriate|comfortable)\b"
)
EMOJI = re.compile("[\u2600-\u27bf\u2b50\U0001f1e6-\U0001faff]")
END = re.compile(r"[.!?…。！？:;)\]}\"'”’`*|>]\s*\Z")


def _finder(pattern: str, *marks: str) -> Callable[[str], bool]:
    """Searches where one of the marks is, which are looked for many times as fast as a pattern."""
    search = re.compile(pattern, re.MULTILINE).search
    return lambda text: any(mark in text for mark in marks) and search(text) is not None


# Each says of one completion whether it has the trait.
CUES: Mapping[str, Callable[[str], bool]] = {
    "markdown": _finder(
        r"^ {0,3}(?:#{1,6} |> )|\*\*[^*\n]+\*\*|\[[^\]\n]+\]\(http", "# ", "> ", "**", "](http"
    ),
    "list": _finder(r"^ {0,3}(?:[-*+•] |\d{1,2}[.)] )", "- ", "* ", "+ ", "• ", ". ", ") "),
    "code": _finder(r"^ {0,3}(?:```|~~~)", "```", "~~~"),
    "refusal": lambda text: REFUSAL.search(text, 0, OPENING_CHARACTERS) is not None,
    "emoji": lambda text: not text.isascii() and EMOJI.search(text) is not None,
    "exclamation": lambda text: "!" in text,
    "question": lambda text: text.rstrip().endswith("?"),
    "unfinished": lambda text: END.search(text[-20:]) is None,
}

# Ten digits or more in the groups that people write, or an international prefix.
PHONE = re.compile(
    r"(?<![\w.,-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-]|\.\d)"
)
DIGITS = re.compile(r"\d\d")


def _phone(text: str) -> bool:
    return DIGITS.search(text) is not None and PHONE.search(text) is not None


PERSONAL: Mapping[str, Callable[[str], bool]] = {
    "e-mail address": _finder(
        r"\b[\w.%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,}\b", "@"
    ),
    "phone number": _phone,
    "key or token": _finder(
        r"\bAKIA[0-9A-Z]{16}\b|\bsk-[\w-]{20,}|\bgh[pousr]_[A-Za-z0-9]{36,}|\bhf_[A-Za-z0-9]{30,}"
        r"|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{35}|\bglpat-[\w-]{20}"
        r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
        "AKIA", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "hf_", "xox", "AIza", "glpat-",
        "PRIVATE KEY", "eyJ",
    ),
}  # fmt: skip

LEFTOVERS: Mapping[str, Callable[[str], bool]] = {
    "<|...|>": _finder(r"<\|[A-Za-z][\w ]{1,30}\|>|<｜[^｜\n]{1,30}｜>", "<|", "<｜"),
    "[INST]": _finder(r"\[/?INST\]|<</?SYS>>", "INST]", "SYS>>"),
    "<s>": _finder(r"</?s>|<(?:bos|eos|pad|unk)>", "s>", "<pad>", "<unk>"),
    "<start_of_turn>": _finder(r"<(?:start|end)_of_turn>", "_of_turn>"),
    "### Instruction:": _finder(
        r"^#{2,3} ?(?:Instruction|Response|Input|Human|Assistant|User):", "##"
    ),
    "Human:": _finder(
        r"^(?:Human|Assistant|USER|ASSISTANT|User|System):", "man:", "ant:", "ANT:", "SER:", "ser:",
        "tem:",
    ),
}  # fmt: skip


def bits(tests: Mapping[str, Callable[[str], bool]], text: str) -> int:
    """Which of some patterns are in a text, the first as the lowest bit."""
    return sum(1 << bit for bit, test in enumerate(tests.values()) if test(text))


def shingles(text: str) -> list[str]:
    """The words of a text and its pairs of neighbouring words, in lower case."""
    words = CHARACTER_OR_WORD.findall(text.lower())
    return [*words, *map(" ".join, pairwise(words))]


def opening(text: str) -> str:
    """The first words of a text, in lower case."""
    return " ".join(WORD.findall(text[:OPENING_CHARACTERS].lower())[:NUM_OPENING_WORDS])
