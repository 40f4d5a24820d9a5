"""Every code block of the quickstart and the tutorials runs as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS / "quickstart.md", *sorted((DOCS / "tutorials").glob("*.md"))]
# A model that is small and lies here takes the place of the one that readers download.
NAMED = "HuggingFaceTB/SmolLM2-135M-Instruct"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)
# Written by readers, as `pip install`, or not to be run at all.
SHOWN = {"console", "text", "yaml"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8").replace(NAMED, str(tiny_model_dir))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("\n```") // 2
    for language, title, code in blocks:
        if title:
            (tmp_path / title).write_text(code, encoding="utf-8")
            continue
        if language in SHOWN:
            continue
        command = {"sh": ["bash", "-euc", code], "python": [sys.executable, "-c", code]}[language]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True,
            timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
