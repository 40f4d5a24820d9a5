"""The key `peft` beside the flat keys."""

from __future__ import annotations

from typing import Any

import pytest

from penchant.config.keys import RunConfig, load_config
from penchant.core.errors import ConfigError


def config_of(peft: Any, **keys: Any) -> RunConfig:
    return load_config("dpo", {"model": "m", "data": "d", "peft": peft, **keys})


def test_what_has_a_flat_key_goes_there_and_the_rest_stays() -> None:
    config = config_of({"r": 4, "target_modules": {"v_proj", "q_proj"}, "use_dora": True})
    assert (config.lora_r, config.lora_target_modules) == (4, "q_proj,v_proj")
    assert config.peft == {"use_dora": True}
    again = config.flat()
    assert load_config("dpo", again) == config
    assert config_of("use_rslora=true,bias=all", lora_r=4).peft == {
        "use_rslora": True,
        "bias": "all",
    }
    assert config_of({"r": 4}, lora_r=4).lora_r == 4


@pytest.mark.parametrize(
    ("peft", "keys", "message"),
    [
        ({"use_dorra": True}, {}, "has no 'use_dorra'; nearest are use_dora"),
        ({"r": 4}, {"lora_r": 8}, "peft says r 4 and lora_r says 8"),
        ({"use_dora": True}, {"lora_r": 0}, "lora_r 0 trains all weights"),
        ({"task_type": "SEQ_CLS"}, {}, "task_type is not to be set"),
        ({"bias": "all"}, {"reference": "adapter"}, "set reference to copy or cache"),
        ({"init_lora_weights": "corda"}, {"quantization": "4bit"}, "set eva, or drop quantization"),
        ({"init_lora_weights": "lora_ga"}, {"reference": "adapter"}, "set reference to copy"),
        ({"layer_replication": [[0, 2]]}, {"sync_ref_model": True}, "sync_ref_model"),
        ({"use_dora": True, "lora_bias": True}, {}, "lora_bias=True is not supported for DoRA"),
        ({"alora_invocation_tokens": [1]}, {}, "alora_invocation_tokens cannot be had"),
        (5, {}, "must be a mapping"),
        ("{no json", {}, "write use_dora=true"),
    ],
)
def test_contradictions_and_unknown_names_are_refused(
    peft: Any, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(peft, **keys)
