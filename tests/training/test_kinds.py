"""Every method finds the kind of data that it learns from."""

from __future__ import annotations

from penchant.config.keys import load_config
from penchant.data.prompts import Prompt
from penchant.data.tokenised import TokenisedPrompt
from penchant.methods import METHODS
from penchant.training.kind import kind_of
from penchant.training.kind_labels import Labels
from penchant.training.kind_prompts import Prompts
from penchant.training.kind_scores import Scores
from penchant.training.kinds import Pairs


def test_every_method_has_the_kind_of_its_data_and_model() -> None:
    kinds = {"pairs": Pairs, "labels": Labels, "prompts": Prompts}
    for name, method in METHODS.items():
        expected = Scores if method.model == "score" else kinds[method.data]
        assert type(kind_of(method)) is expected, name


def test_an_adapter_of_a_method_that_samples_starts_from_prompts_as_they_are() -> None:
    keys = {"model": "m", "data": "d", "reward": "length:5", "peft": "init_lora_weights=eva"}
    config = load_config("grpo", keys)
    examples = [TokenisedPrompt(ids, Prompt("?", {}, "row"), "row") for ids in ([5, 6, 7], [8])]
    assert kind_of(config.spec)._texts(config, examples) == [[5, 6, 7], [8]]
