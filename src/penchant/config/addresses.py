"""Addresses among the keys of a run: refused before any file of the run is written."""

from __future__ import annotations

from typing import Any

from penchant.core.address import require_address
from penchant.core.errors import ConfigError


def check_addresses(config: Any) -> None:
    """Refuse addresses of rewards that may hold a secret, which `config.yaml` would show.

    Args:
        config: a `RunConfig`.

    Raises:
        ValueError: with what to do.
    """
    rewards = [config.monitor_reward or "", *getattr(config.options, "reward", ())]
    for reward in rewards:
        address = reward.removeprefix("judge:")
        if address.startswith(("http://", "https://")):
            try:
                require_address(
                    address, "REWARD_API_KEY" if address == reward else "OPENAI_API_KEY"
                )
            except ConfigError as error:
                raise ValueError(str(error)) from None
