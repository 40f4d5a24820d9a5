"""What a model's answers are compared with, where that is what it started from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from penchant.commands.opened import open_model
from penchant.commands.two_answers import answer_both
from penchant.data.prompts import read_prompts
from penchant.rl.sampling.base import Draw, Sampling


@pytest.mark.parametrize("run", ["adapter_run", "changed_base_run"])
def test_the_start_of_an_adapter_answers_as_its_base(
    run: str, request: pytest.FixtureRequest, tiny_model_dir: Path, held_out_file: Path
) -> None:
    """Switched off, an adapter leaves its base, unless that lacks what the adapter began with."""
    folder: Path = request.getfixturevalue(run)
    prompts, draw = read_prompts(held_out_file).records, Draw(Sampling(8), seed=3)
    own, start = answer_both(open_model(folder, 4, {}), None, prompts, draw, 4)
    # The base under the name of the run, so that it reads prompts as the run does.
    base = replace(open_model(tiny_model_dir, 4, {"max_length": 64}), name=folder)
    expected, _ = answer_both(base, base, prompts, draw, 4)
    assert [one.completion for one in start] == [one.completion for one in expected]
    assert [one.completion for one in start] != [one.completion for one in own]
