"""What is searched for in texts: personal data, what templates and images leave, words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise

# Longer texts are searched up to here: a line of 100 MB costs no more than others.
SEARCHED_CHARACTERS = 100_000
# Scripts without spaces between words, a character each.
CHARACTER_OR_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u9fff]+")


def finder(pattern: str, *marks: str) -> Callable[[str], bool]:
    """Searches where one of the marks is, which are looked for many times as fast as a pattern."""
    search = re.compile(pattern, re.MULTILINE).search
    return lambda text: any(mark in text for mark in marks) and search(text) is not None


# Ten digits or more in the groups that people write, or an international prefix.
PHONE = re.compile(
    r"(?<![\w.,-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-]|\.\d)"
)
DIGITS = re.compile(r"\d\d")


def _phone(text: str) -> bool:
    return DIGITS.search(text) is not None and PHONE.search(text) is not None


PERSONAL: Mapping[str, Callable[[str], bool]] = {
    "e-mail address": finder(
        r"\b[\w.%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,}\b", "@"
    ),
    "phone number": _phone,
    "key or token": finder(
        r"\bAKIA[0-9A-Z]{16}\b|\bsk-[\w-]{20,}|\bgh[pousr]_[A-Za-z0-9]{36,}|\bhf_[A-Za-z0-9]{30,}"
        r"|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{35}|\bglpat-[\w-]{20}"
        r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
        "AKIA", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "hf_", "xox", "AIza", "glpat-",
        "PRIVATE KEY", "eyJ",
    ),
}  # fmt: skip

LEFTOVERS: Mapping[str, Callable[[str], bool]] = {
    "<|...|>": finder(r"<\|[A-Za-z][\w ]{1,30}\|>|<｜[^｜\n]{1,30}｜>", "<|", "<｜"),
    "[INST]": finder(r"\[/?INST\]|<</?SYS>>", "INST]", "SYS>>"),
    "<s>": finder(r"</?s>|<(?:bos|eos|pad|unk)>", "s>", "<pad>", "<unk>"),
    "<start_of_turn>": finder(r"<(?:start|end)_of_turn>", "_of_turn>"),
    "### Instruction:": finder(
        r"^#{2,3} ?(?:Instruction|Response|Input|Human|Assistant|User):", "##"
    ),
    "Human:": finder(
        r"^(?:Human|Assistant|USER|ASSISTANT|User|System):", "man:", "ant:", "ANT:", "SER:", "ser:",
        "tem:",
    ),
}  # fmt: skip

# What stands in a text where another model would be shown an image, a sound or a video.
MEDIA_MARKS: Mapping[str, Callable[[str], bool]] = {
    "<image>": finder(r"<image(?:_?\d+|_?placeholder)?>|<ImageHere>", "<image", "<ImageHere>"),
    "<|image|>": finder(r"<\|(?:image|vision|video|audio)\w*\|>", "<|image", "<|vision", "<|video",
                        "<|audio"),
    "<video>": finder(r"\A<(?:video|audio)>", "<video>", "<audio>"),
}  # fmt: skip


def matching(tests: Mapping[str, Callable[[str], bool]], text: str) -> list[str]:
    """Which of some patterns are in a text, by name."""
    return [name for name, test in tests.items() if test(text)]


def shingles(text: str) -> list[str]:
    """The words of a text and its pairs of neighbouring words, in lower case."""
    words = CHARACTER_OR_WORD.findall(text.lower())
    return [*words, *map(" ".join, pairwise(words))]
