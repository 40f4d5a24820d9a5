"""The documentation says what the code does."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penchant.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def load_tool(name: str) -> Any:
    if str(ROOT / "tools") not in sys.path:  # where they find each other
        sys.path.append(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_tables_of_facts_are_those_of_the_code() -> None:
    tool = load_tool("document_methods")
    stale = [str(page.relative_to(ROOT)) for page in tool.stale()]
    assert stale == [], "run make docs"
    index = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    assert all(f"]({name}.md)" in index for name in METHODS)
    assert load_tool("document_keys").main(["--check"]) == 0, "run make docs"


@pytest.mark.slow
def test_the_table_of_models_is_that_of_the_tests() -> None:
    assert load_tool("document_models").stale() == "", "run make docs"


def test_the_table_of_what_fits_where_is_that_of_the_forecast() -> None:
    assert load_tool("document_memory").stale() == "", "run make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_on_the_methods_page(name: str) -> None:
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    for option in METHODS[name].options.model_fields:
        assert f"`{option}`" in page


# Words that a reader who is not native has to look up, or takes for something else.
HARD = re.compile(r"\b(mend(s|ed)?|anew|dear|foretold|turn(ed)? round)\b", re.I)


def test_what_users_read_has_no_words_that_are_hard_to_understand() -> None:
    from penchant.cli.arguments import build_parser

    def helps(parser: Any) -> Iterator[str]:
        yield parser.format_help()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for one in action.choices.values():
                    yield from helps(one)

    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    texts = {page.name: page.read_text(encoding="utf-8") for page in pages}
    texts["--help"] = "\n".join(helps(build_parser()))
    found = {name: HARD.search(text) for name, text in texts.items()}
    assert {name: one[0] for name, one in found.items() if one} == {}
