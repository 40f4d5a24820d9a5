"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from penchant.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_tables_of_facts_are_those_of_the_code() -> None:
    file = ROOT / "tools" / "document_methods.py"
    spec = importlib.util.spec_from_file_location("document_methods", file)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    stale = [str(page.relative_to(ROOT)) for page in tool.stale()]
    assert stale == [], "run make docs"
    assert all(f"docs/methods/{name}.md" in tool.overview() for name in METHODS)


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
