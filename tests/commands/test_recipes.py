"""Every recipe that the package carries parses, has sane numbers, and trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.cli.main import main
from penchant.commands.recipes import copy_recipe, recipes
from penchant.config.files import read_yaml
from penchant.config.keys import load_config
from penchant.core.errors import ConfigError
from penchant.guards.checks.optimization import beta, learning_rate
from penchant.guards.checks.snapshot import DataFacts, ModelFacts, Snapshot, TokenFacts
from penchant.methods import METHODS

RECIPES = {recipe.name: recipe for recipe in recipes()}
# It tells answers apart that are all cut at the same length.
REWARD = "def score(completions, **columns):\n    return [len(set(text)) for text in completions]\n"
FAST = ("pairs-to-model", "kto")


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


@pytest.mark.parametrize("name", FAST)
def test_a_recipe_trains_two_steps(
    name: str, tiny_keys: dict[str, Any], as_labels: Any, tmp_path: Path
) -> None:
    keys = {**tiny_keys, "output": tmp_path / "run", "max_steps": 2}
    del keys["learning_rate"], keys["per_device_train_batch_size"]
    if METHODS[RECIPES[name].method].data == "labels":
        keys["data"] = str(as_labels(Path(keys["data"])))
    result = penchant.train(config=RECIPES[name].file, **keys)
    assert result.steps == 2
    assert result.model.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_two_steps_of_a_model_that_writes_stories(
    name: str, shared: Path, training_file: Path, as_labels: Any, tmp_path: Path
) -> None:
    """With the recipe's own numbers: only what it reads and where it writes is ours."""
    spec, model = METHODS[RECIPES[name].method], str(shared / "models" / "stories260k")
    keys: dict[str, Any] = {"model": model, "output": tmp_path / "run", "max_steps": 2}
    keys["data"] = as_labels(training_file) if spec.data == "labels" else training_file
    (tmp_path / "rewards.py").write_text(REWARD)
    ours = {"reward": f"{tmp_path / 'rewards.py'}:score", "teacher_model": model}
    own = read_yaml(RECIPES[name].file)
    keys |= {key: value for key, value in ours.items() if key in own}
    result = penchant.train(config=RECIPES[name].file, **keys)
    assert result.steps == 2
    assert result.model.is_dir()
