"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from penchant.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", METHODS)
def test_the_readme_table_is_the_methods_facts(name: str) -> None:
    facts = METHODS[name].facts
    row = (
        f"| [{name}](docs/methods/{name}.md) | {facts.data} | {facts.models_in_memory} "
        f"| {facts.stability} | {facts.when} |"
    )
    assert row in (ROOT / "README.md").read_text(encoding="utf-8")


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
