"""Every recipe that the package carries parses, has sane numbers, and trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.cli.main import main
from penchant.commands.recipes import copy_recipe, recipes
from penchant.config.keys import load_config
from penchant.core.errors import ConfigError
from penchant.guards.checks.optimization import beta, learning_rate
from penchant.guards.checks.snapshot import DataFacts, ModelFacts, Snapshot, TokenFacts
from penchant.methods import METHODS

RECIPES = {recipe.name: recipe for recipe in recipes()}
FAST = ("pairs-to-model", "kto")
TRAINED = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES]


def test_there_is_one_a_method_and_each_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert {*METHODS} <= {*RECIPES}
    assert all(RECIPES[name].method == name for name in METHODS)
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out.splitlines()
    for name, recipe in RECIPES.items():
        assert any(line.split()[:1] == [name] and recipe.about in line for line in listed)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_and_its_numbers_are_sane(name: str) -> None:
    config = load_config(None, {}, file=RECIPES[name].file)
    facts = (DataFacts(num_train=1000), TokenFacts(num_examples=1000), ModelFacts())
    run = Snapshot(config, *facts, num_steps=50)
    assert [*learning_rate(run), *beta(run)] == []
    assert f"penchant train {name}.yaml" in RECIPES[name].file.read_text(encoding="utf-8")


def test_a_copy_is_the_recipe_and_takes_no_files_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "apo-zero"]) == 0
    assert (tmp_path / "apo_zero.yaml").read_text() == RECIPES["apo_zero"].file.read_text()
    with pytest.raises(ConfigError, match="is there already"):
        copy_recipe("apo_zero")
    with pytest.raises(ConfigError, match=r"no recipe 'kt'; did you mean kto"):
        copy_recipe("kt")
    with pytest.raises(ConfigError, match="no folder"):
        copy_recipe("dpo", tmp_path / "absent" / "dpo.yaml")


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_trains_two_steps(
    name: str, tiny_keys: dict[str, Any], as_labels: Any, tmp_path: Path
) -> None:
    spec = METHODS[RECIPES[name].method]
    keys = {**tiny_keys, "output": tmp_path / "run", "max_steps": 2}
    del keys["learning_rate"], keys["per_device_train_batch_size"]
    if spec.data == "labels":
        keys["data"] = str(as_labels(Path(keys["data"])))
    elif spec.samples:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": f"Is {n}?"}) + "\n" for n in range(16)))
        keys |= {"reward": "length:8", "max_completion_length": 8, "batch_size": 16}
        if "teacher_model" in spec.options.model_fields:
            keys["teacher_model"] = keys["model"]
        keys["data"] = str(file)
    result = penchant.train(config=RECIPES[name].file, **keys)
    assert result.steps == 2
    assert result.model.is_dir()
