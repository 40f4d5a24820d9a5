"""Addresses among the keys of a run: refused before any file of the run is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penchant.core.address import require_address
from penchant.core.errors import ConfigError

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig

KEY = "OPENAI_API_KEY"


def check_addresses(config: RunConfig) -> None:
    """Refuse addresses of rewards that may hold a secret, which `config.yaml` would show.

    Raises:
        ValueError: with what to do.
    """
    rewards = [config.monitor_reward or "", *getattr(config.options, "reward", ())]
    for address in (one.removeprefix("judge:") for one in rewards):
        if address.startswith(("http://", "https://")):
            try:
                require_address(address, KEY)
            except ConfigError as error:
                raise ValueError(str(error)) from None
