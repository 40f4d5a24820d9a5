"""Write what the package says of its methods and findings into the README and the pages.

With --check it only lists what is stale, and exits 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from penchant.core.explain import PAGE as EXPLAINED
from penchant.methods import METHODS, Method

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = ROOT / "docs" / "methods"
GUARDS = ROOT / "docs" / "guards.md"
# Those that a newcomer chooses from; the rest are on the page of all methods.
FIRST = ("dpo", "ipo", "kto", "orpo", "simpo", "cpo", "reward", "ppo")
OVERVIEW = ("Method", "Data", "Models in memory", "Stability", "When to use")


def overview(names: Iterable[str], folder: str = "") -> str:
    """A table with a row for each of the methods, whose pages lie in `folder`."""
    rows = [OVERVIEW, ("---",) * len(OVERVIEW)]
    for name in names:
        facts = METHODS[name].facts
        link = f"[{name}]({folder}{name}.md)"
        rows.append((link, facts.data, facts.models_in_memory, facts.stability, facts.when))
    return _table(rows)


def facts_table(method: Method) -> str:
    """The table at the top of a method's page."""
    facts = method.facts
    low, high = facts.learning_rate_range
    rows = [
        ("Data", facts.data),
        ("Models in memory", facts.models_in_memory),
        ("Stability", facts.stability),
        ("Typical beta", facts.beta),
        (
            "Learning rate",
            f"{_rate(facts.learning_rate)} for all weights (sane: {_rate(low)} to {_rate(high)}), "
            f"{_rate(facts.learning_rate_lora)} with LoRA",
        ),
        ("Paper", f"[{_authors(method)}]({facts.paper})"),
    ]
    return "| | |\n|---|---|\n" + _table([row for row in rows if row[1]])


def stale() -> dict[Path, str]:
    """Every page that says something else than the code, and what it ought to say.

    Raises:
        ValueError: a page has no such table to rewrite.
    """
    first, everything = overview(FIRST, "docs/methods/"), overview(METHODS)
    found = {README: _rewritten(README, "methods", OVERVIEW[0], first)}
    found[PAGES / "index.md"] = _rewritten(PAGES / "index.md", "methods", OVERVIEW[0], everything)
    for name, method in METHODS.items():
        page = PAGES / f"{name}.md"
        found[page] = _rewritten(page, "facts", "", facts_table(method))
    # The page ships with the package, where `penchant explain` reads it.
    found[GUARDS] = EXPLAINED.read_text(encoding="utf-8")
    return {page: text for page, text in found.items() if text != page.read_text(encoding="utf-8")}


def _rewritten(page: Path, name: str, first_cell: str, table: str) -> str:
    """A page with a new table where one of that first cell stands, between its markers or bare."""
    start, end = f"<!-- {name}: written by tools/document_methods.py -->", f"<!-- end {name} -->"
    row = r"\|.*\n"
    old = rf"(?:{re.escape(start)}\n)?\| {first_cell} ?\|.*\n(?:{row})*(?:{re.escape(end)}\n)?"
    new = f"{start}\n{table}{end}\n"
    text, count = re.subn(old, lambda _: new, page.read_text(encoding="utf-8"), count=1)
    if not count:
        raise ValueError(f"{page} has no table of {name}; put a line '| {first_cell} | |' there")
    return text


def _authors(method: Method) -> str:
    """As the method's module cites them: '(Authors 2024, https://...)'."""
    module = f"{METHODS.__module__}.{method.name}"
    cited = re.search(r"[(;] ?([^();]+ \d{4}), http", sys.modules[module].__doc__ or "")
    if cited is None:
        raise ValueError(f"the first line of {module} cites no (Authors 2024, URL)")
    return cited[1]


def _table(rows: list[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace("| --- ", "|---")


def _rate(value: float) -> str:
    """1e-4 and 1.5e-6 instead of 0.0001 and 1.5e-06."""
    return re.sub(r"\.?0*e-0?", "e-", f"{value:e}")


def main() -> int:
    """Rewrite or check; the exit status."""
    pages = stale()
    if "--check" in sys.argv[1:]:
        for page in pages:
            print(f"{page.relative_to(ROOT)} is stale; run make docs")
        return int(bool(pages))
    for page, text in pages.items():
        page.write_text(text, encoding="utf-8")
        print(f"wrote {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
