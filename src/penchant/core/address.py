"""The address of a service: whether it is one, what it must not hold, and whom it reaches."""

from __future__ import annotations

import ipaddress
import logging
from urllib.parse import urlsplit

from penchant.core.errors import ConfigError

logger = logging.getLogger("penchant")

FORM = "http://host:port/v1"


def require_address(url: str, api_key_env: str) -> None:
    """Refuse what is no address of an API, and one that may hold a secret.

    A run writes the addresses that it uses into its files, and messages quote them.

    Args:
        url: as the user wrote it.
        api_key_env: the environment variable that holds the key of the service.

    Raises:
        ConfigError: it is none, or holds a name, a password or a query, which is not quoted.
    """
    if not url.startswith(("http://", "https://")):
        shown = "what is given" if set(url) & set("@?") else repr(url)
        raise ConfigError(f"{shown} is no address of an API; write it as {FORM}")
    try:
        host = urlsplit(url).netloc
    except ValueError:  # whose message quotes what stands before the host
        raise ConfigError(f"the address of an API cannot be read; write it as {FORM}") from None
    held = "a name or a password" if "@" in host else "a query (what follows ?)"
    if "@" in host or "?" in url:
        raise ConfigError(
            f"the address of an API holds {held}, which the files of a run would show; leave it "
            f"out, and put a key into the environment variable {api_key_env} (a YAML file names "
            "another one as api_key_env)"
        )


def warn_of_leaving(url: str, what: str) -> None:
    """Say which data leave this machine, where the address is not of this machine.

    Args:
        url: of the service.
        what: is sent there.
    """
    host = urlsplit(url).hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        logger.warning(
            "%s of your data are sent to %s, which is not this machine: make sure that they may "
            "be%s", what, host, "" if url.startswith("https://") else "; http:// sends them "
            "readable to everybody on the way",
        )  # fmt: skip
