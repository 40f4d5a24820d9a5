"""The code blocks of the documentation's pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r'^```(\w*)(?: title="[^"]+")?\n(.*?)^```$', re.M | re.S)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+")
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n+\Z")


@dataclass(frozen=True)
class Block:
    """A code block: where it is, its language, its text, and whether it is run."""

    page: Path
    line: int
    language: str
    text: str
    runs: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    unrun = "<!-- blocks not run: " in text
    for found in FENCED.finditer(text):
        yield _block(page, text, found.start(), found[1], found[2], unrun)
    # What is fenced may be indented, too: blanks keep the places of what is not.
    rest = FENCED.sub(lambda one: re.sub(r"[^\n]", "x", one[0]), text)
    for found in INDENTED.finditer(rest):
        code = re.sub(r"^ {4}", "", found[0].strip("\n"), flags=re.M)
        formula = page.parent.name == "methods" and not code.startswith("penchant ")
        yield _block(page, text, found.start(), "text" if formula else "sh", code, unrun)


def _block(page: Path, text: str, at: int, language: str, code: str, unrun: bool) -> Block:
    line = text.count("\n", 0, at) + 1
    return Block(page, line, language, code, not (unrun or NOT_RUN.search(text[:at])))


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_of(code: str) -> Iterator[tuple[list[str], str | None]]:
    """The simple commands of a shell's text, each with the file that its output goes to."""
    for line in code.replace("\\\n", " ").splitlines():
        if line.startswith("#SBATCH"):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        target: str | None = None
        for word in [*lexer, ";"]:
            if target == "":
                target = word
            elif word == ">" or word == ">>":
                target = ""
            elif word and set(word) <= set("|&;()"):
                if words:
                    yield words, target
                words, target = [], None
            elif words or not re.match(r"\w+=", word):
                words.append(word)
