"""Which settings of the methods that sample their own answers are refused, and which are taken."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from penchant.config.keys import load_config
from penchant.core.errors import ConfigError
from penchant.methods import METHODS
from penchant.methods.grouped import GroupOptions

# Those that learn from a reward; test_distill.py has what learns from a teacher.
ONLINE = {
    name: method
    for name, method in METHODS.items()
    if method.samples and method.options.learns_from_reward
}
RUN = {"model": "M", "data": "D", "reward": "length:8"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"reward": []}, "reward names nothing"),
        ({"reward_weights": "1,2"}, "2 numbers for 1 rewards; give one each"),
        ({"reward": ["a", "b"], "reward_weights": [1.0]}, "1 numbers for 2 rewards"),
        ({"length_penalty": 0.1}, "length_penalty needs length_budget"),
        ({"overlong_buffer": 128}, r"overlong_buffer \(128\) must be shorter than"),
        ({"score_clip": 0}, "score_clip should be greater than 0"),
        ({"temperature": 0}, "temperature should be greater than 0"),
        ({"top_p": 1.5}, "top_p should be less than or equal to 1"),
        ({"generation": "cache"}, "generation should be 'auto', 'cached'"),
        ({"batch_size": 72}, r"batch_size \(72 sampled answers\) must be a multiple of the "),
        ({"per_device_train_batch_size": 3}, "mini-batch \\(12: "),
        ({"reference": "cache"}, "samples its answers: a cache cannot know them"),
        ({"max_completion_length": 1024}, "do not fit in max_length"),
        ({"max_completion_length": 600, "max_prompt_length": 500}, "do not fit in max_length"),
        ({"rewards": "x"}, "did you mean reward"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(keys, message):
    for method in ONLINE:
        with pytest.raises(ConfigError, match=message):
            load_config(method, {**RUN, **keys})


def test_the_same_settings_one_step_less_far_are_taken():
    """What was refused above is refused for no other reason."""
    keys = {
        "reward": ["a", "b"], "reward_weights": "1,0.5", "length_penalty": 0.1,
        "length_budget": 20, "overlong_buffer": 127, "score_clip": 5, "batch_size": 80,
        "reference": "copy",
    }  # fmt: skip
    for method in ONLINE:
        config = load_config(method, {**RUN, **keys})
        assert config.options.reward_weights == (1.0, 0.5)
        assert load_config(method, config.flat()).options == config.options
        assert config.prompt_budget == 1024 - 128


def test_a_method_without_a_divergence_runs_without_a_reference():
    without = {**RUN, "reference": "none"}
    for method in ("grpo", "rloo"):
        assert load_config(method, {**without, "beta": 0}).reference == "none"
        with pytest.raises(ConfigError, match="compares with a reference"):
            load_config(method, {**without, "beta": 0.1})


def test_groups_are_sampled_whole():
    for options in [m.options for m in ONLINE.values() if issubclass(m.options, GroupOptions)]:
        with pytest.raises(ValidationError, match=r"batch_size \(20\) must be a multiple"):
            options(reward="r", batch_size=20, num_generations=8)
        assert options(reward="r", batch_size=24, num_generations=8).generations == 8


def test_passes_over_a_batch_are_what_each_method_calls_them():
    assert METHODS["ppo"].options(reward="r", ppo_epochs=3).epochs == 3
    assert METHODS["ppo"].options(reward="r").generations == 1
    for name in ("grpo", "rloo"):
        assert METHODS[name].options(reward="r").epochs == 1
        assert METHODS[name].options(reward="r", num_iterations=3).epochs == 3
