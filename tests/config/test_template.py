"""The file with every key is one that can be run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from penchant.config.keys import load_config
from penchant.config.template import yaml_template
from penchant.core.errors import ConfigError
from penchant.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_every_key_stands_there_once_with_its_meaning_and_default(
    method: str, tmp_path: Path
) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(text := yaml_template(method))
    content = yaml.safe_load(text)
    names = ("model", "data", "reward", "teacher_model")
    required = {key: content[key] for key in names if key in content}
    plain = load_config(method, required)
    assert load_config(None, {}, file=file) == plain
    assert content == plain.flat()
    lines = text.splitlines()
    for key in content:
        (place,) = [i for i, line in enumerate(lines) if line.startswith(f"{key}:")]
        assert lines[place - 1].startswith("# "), key


def test_keys_that_are_given_are_in_it_and_wrong_ones_refused(tmp_path: Path) -> None:
    given = {"model": "m", "data": ["a, b.jsonl", "c"], "columns": {"chosen": "x: y"}, "beta": 0.3}
    (tmp_path / "all.yaml").write_text(yaml_template("dpo", given))
    assert load_config(None, {}, file=tmp_path / "all.yaml") == load_config("dpo", given)
    with pytest.raises(ConfigError, match="did you mean beta"):
        yaml_template("dpo", {"bta": 1})
    with pytest.raises(ConfigError, match="unknown method 'dop'; did you mean dpo"):
        yaml_template("dop")
