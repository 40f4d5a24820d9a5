"""Serve the page on this machine alone, until it is stopped."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from penchant.core.commands import install
from penchant.core.errors import ConfigError, UserError
from penchant.data.opening import Sources
from penchant.data.records import counted
from penchant.label.session import QUESTION, open_session

ADDRESS = "127.0.0.1"
EXTRA = ("starlette", "uvicorn", "markdown_it")
# One local process: no log of addresses, which hold the token, and nothing beyond plain HTTP.
QUIET: dict[str, Any] = {
    "access_log": False,
    "log_level": "warning",
    "server_header": False,
    "proxy_headers": False,
    "lifespan": "off",
    "ws": "none",
    "loop": "asyncio",
    "timeout_graceful_shutdown": 2,
}


def label(
    file: str | Path | Sequence[str | Path],
    *,
    annotators: Sequence[str] = (),
    overlap: int = 1,
    port: int = 0,
    seed: int = 0,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    question: str = QUESTION,
    guidelines: str | Path | None = None,
    no_strength: bool = False,
) -> None:
    """Serve a page to compare the completions of a file, and print its address.

    Args:
        file: pairs, in any layout that training takes, or without a label; several are labelled
            as one.
        annotators: the names that may answer; any when empty.
        overlap: how many annotators answer an item.
        port: of the address; any free one when 0.
        seed: of the left and right order, which differs by item and annotator.
        split, columns: as for `read_pairs`.
        strict: any refused row is an error.
        question: that is asked of each pair.
        guidelines: a file of text or Markdown that annotators can read beside the pairs.
        no_strength: do not ask by how much the chosen answer is better.

    Raises:
        UserError: the guidelines cannot be read, the extra `label` is not installed, the file
            cannot be labelled, or the port is not free.
    """
    try:
        import uvicorn

        from penchant.label.app import create_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise UserError(
            f"the labelling page needs {error.name}, which is not installed; {install('label')}"
        ) from error
    rules = "" if guidelines is None else _read(Path(guidelines))
    with _listen(port) as listening:
        session = open_session(
            Sources.of(file, split, columns),
            annotators=annotators,
            overlap=overlap,
            seed=seed,
            strict=strict,
            question=question,
            guidelines=rules,
            asks_strength=not no_strength,
        )
        token = secrets.token_urlsafe(24)
        server = uvicorn.Server(uvicorn.Config(create_app(session, token), **QUIET))
        print(session.data.summary())
        print(f"answers: {session.store.path} ({session.store.num_answers()} so far)")
        print(
            f"open http://{ADDRESS}:{listening.getsockname()[1]}/{token}/ (Ctrl+C stops)",
            flush=True,
        )
        with suppress(KeyboardInterrupt):  # which uvicorn raises again when it has stopped
            server.run(sockets=[listening])
        print(f"stopped; {counted(session.store.num_answers(), 'answer')} in {session.store.path}")
        print(f"next: {session.export_command}")
        session.store.close()


def _read(guidelines: Path) -> str:
    try:
        return guidelines.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"guidelines cannot be read from {guidelines}: {error}") from error


def _listen(port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise ConfigError(f"port must be 0 to 65535, got {port}; set port")
    try:
        return socket.create_server((ADDRESS, port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {ADDRESS}:{port}: {error.strerror}; set port, or leave it out for "
            "any free one"
        ) from error
