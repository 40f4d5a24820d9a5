"""What may stand in the address of a service, which a run writes down and messages quote."""

from __future__ import annotations

import logging

import pytest

from penchant.config.keys import load_config
from penchant.core.address import require_address, warn_of_leaving
from penchant.core.endpoint import Endpoint, EndpointSettings
from penchant.core.errors import ConfigError
from penchant.rl.rewards.make import find_rewards


@pytest.mark.parametrize(
    ("url", "held"),
    [
        ("http://me:hunter22@127.0.0.1:9/v1", "a name or a password"),
        ("http://127.0.0.1:9/v1?key=hunter22", r"a query \(what follows \?\)"),
        ("https://127.0.0.1:9/v1/?api-key=hunter22", "a query"),
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_quoted(url: str, held: str) -> None:
    with pytest.raises(ConfigError, match=f"holds {held}.*MY_KEY.*api_key_env") as caught:
        require_address(url, "MY_KEY")
    assert "hunter22" not in str(caught.value)


def test_judges_and_services_refuse_it_before_they_are_asked() -> None:
    with pytest.raises(ConfigError, match=r"a query .*OPENAI_API_KEY"):
        Endpoint(EndpointSettings(url="http://127.0.0.1:9/v1?key=hunter22"))
    for spec, variable in (
        ("judge:http://127.0.0.1:9/v1?key=hunter22", "OPENAI_API_KEY"),
        ("http://127.0.0.1:9/score?token=hunter22", "REWARD_API_KEY"),
        ("http://127.0.0.1:9/score?token=hunter22#helpful", "REWARD_API_KEY"),
    ):
        with pytest.raises(ConfigError, match=rf"a query .*{variable}") as caught:
            find_rewards([spec])
        assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("spec", ["judge:http://[::1:8000/v1", "http://[::1:8000/score"])
def test_an_address_that_cannot_be_read_ends_in_one_line(spec: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read; write it as"):
        find_rewards([spec])


def test_a_password_that_cannot_be_read_is_not_quoted() -> None:
    with pytest.raises(ConfigError, match="cannot be read; write it as") as caught:
        require_address("http://me:hunter22\uff1a@host/v1", "MY_KEY")
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"method": "ppo", "reward": "http://127.0.0.1:9/score?token=hunter22"},
        {"method": "dpo", "monitor_reward": "judge:http://127.0.0.1:9/v1?key=hunter22"},
    ],
    ids=["reward", "monitor_reward"],
)
def test_no_file_of_a_run_is_written_before_an_address_is_refused(keys: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="holds a query") as caught:
        load_config(keys.pop("method"), {"model": "m", "data": "d", **keys})
    assert "hunter22" not in str(caught.value)


def test_what_is_no_address_says_how_to_write_one() -> None:
    with pytest.raises(ConfigError, match="'localhost/v1' is no address of an API; write it as"):
        require_address("localhost/v1", "MY_KEY")
    require_address("http://[::1]:8000/v1", "MY_KEY")
    require_address("http://127.0.0.1:9000/score#helpful", "MY_KEY")


def test_data_that_leave_this_machine_are_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("penchant"), "propagate", True)
    warn_of_leaving("http://localhost:8000/score", "prompts")
    warn_of_leaving("http://127.0.0.1/score", "prompts")
    assert caplog.messages == []
    warn_of_leaving("http://rater.example/score", "prompts")
    assert "sent to rater.example, which is not this machine" in caplog.messages[0]
