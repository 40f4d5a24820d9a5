"""A YAML file of keys in place of the method: what is typed, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import penchant
from penchant.cli.main import main
from penchant.cli.words import as_parsed
from penchant.core.errors import ConfigError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text("method: apo-zero\nmodel: m\ndata: d\n")
    return file


def test_a_file_stands_where_the_method_does(recipe: Path) -> None:
    wanted = ["train", "apo_zero", "--config", str(recipe), "--max_steps", "2"]
    assert as_parsed(["train", str(recipe), "--max-steps", "2"]) == wanted
    assert as_parsed(["train", *wanted[2:]]) == wanted
    alone = ["check", "apo_zero", "--no_probe", f"--config={recipe}"]
    assert as_parsed(["check", "--no-probe", f"--config={recipe}"]) == alone
    named = ["sweep", "dpo", "--config", str(recipe)]  # what does not agree is refused later
    assert as_parsed(named) == named
    assert as_parsed(["evaluate", "--model", "m.yaml"]) == ["evaluate", "--model", "m.yaml"]


@pytest.mark.parametrize(
    ("content", "more", "told"),
    [
        ("model: m\n", [], "names no method; add a line such as 'method: dpo'"),
        ("method: dop\n", [], "unknown method 'dop'"),
        ("method: dpo\n", ["--config", "other.yaml"], "two files of keys; give one"),
        (None, [], "no such configuration file"),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_by_name(
    content: str | None, more: list[str], told: str, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=told) as refusal:
        as_parsed(["train", str(file), *more])
    assert "recipe.yaml" in str(refusal.value)


def test_a_run_from_its_yaml_alone_is_the_run_of_its_keys(
    tiny_keys: dict[str, Any], tmp_path: Path
) -> None:
    keys = {
        key: str(value) if isinstance(value, Path) else value for key, value in tiny_keys.items()
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"method": "dpo", **keys, "max_steps": 1}))
    assert main(["train", str(file), "--output", str(tmp_path / "typed")]) == 0
    result = penchant.train(config=file, output=tmp_path / "called")
    recorded = [
        {**yaml.safe_load((run / "config.yaml").read_text()), "output": None}
        for run in (tmp_path / "typed", result.output)
    ]
    assert recorded[0] == recorded[1]
    assert recorded[0]["method"] == "dpo"
    assert recorded[0]["max_steps"] == 1
