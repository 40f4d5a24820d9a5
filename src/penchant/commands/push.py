"""`penchant push`: a run's model and its card, to a hub of models; imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.core.errors import ConfigError, ModelError
from penchant.reporting.card import is_hub_id, render_card
from penchant.reporting.reading import read_run

CARD, ADAPTER = "README.md", "adapter_config.json"
BASE = "base_model_name_or_path"


@dataclass(frozen=True)
class Pushed:
    """What was uploaded, or would be.

    Attributes:
        name: on the hub.
        files: by name, with their bytes.
        card: as Markdown.
        url: of the model's page; None where nothing was uploaded.
    """

    name: str
    files: dict[str, int]
    card: str
    url: str | None = None


def push(
    run: Path | str,
    name: str,
    *,
    public: bool = False,
    merged: bool = False,
    base: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Upload a run's model with its card, in one commit.

    Args:
        run: a run directory.
        name: `owner/name` on the hub; made if it is not there.
        public: anybody may see it; default: it is private if it is made now, and otherwise
            stays as it is.
        merged: upload the whole model that `penchant merge` made of the run's adapter.
        base: the hub's name of the model that the adapter stands on, where the run had it in a
            folder.
        dry_run: upload nothing.

    Returns:
        What was uploaded, or would be.

    Raises:
        ConfigError: no name that the hub takes, or the hub refuses.
        ModelError: no model, or an adapter that would stand on a folder of this machine.
    """
    if not is_hub_id(name):
        raise ConfigError(f"{name!r} is no name on the hub; give owner/name")
    path = Path(run)
    read = read_run(path)
    folder = path / ("merged" if merged else "model")
    if not folder.is_dir():
        how = f"penchant merge {path} makes it" if merged else "a run saves it when it ends"
        raise ModelError(f"{path} holds no {folder.name}/; {how}")
    contents = _contents(folder, base)
    card = render_card(read, folder=folder, name=name, base=base)
    contents[CARD] = card.encode()
    files = {
        file: len(one) if isinstance(one, bytes) else one.stat().st_size
        for file, one in sorted(contents.items())
    }
    if dry_run:
        return Pushed(name, files, card)
    return Pushed(name, files, card, _upload(name, contents, public=public))


def _contents(folder: Path, base: str | None) -> dict[str, Path | bytes]:
    """The files of a saved model, by name; an adapter stands on what others have too.

    Raises:
        ModelError: it stands on a folder of this machine.
    """
    contents: dict[str, Path | bytes] = {
        str(file.relative_to(folder).as_posix()): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(".")
    }
    if not (folder / ADAPTER).exists():
        if base is not None:
            raise ConfigError(f"--base is of an adapter, and {folder} holds a whole model")
        return contents
    settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    stands_on = base or str(settings.get(BASE))
    if not is_hub_id(stands_on):
        raise ModelError(
            f"the adapter stands on {stands_on}, which others do not have: give its name on the "
            "hub as --base owner/name, or penchant merge the run and push with --merged"
        )
    if stands_on != settings.get(BASE):
        contents[ADAPTER] = json.dumps({**settings, BASE: stands_on}, indent=2).encode()
    return contents


def _upload(name: str, contents: dict[str, Path | bytes], *, public: bool) -> str:
    """Make the model's place on the hub if it is not there, and upload in one commit."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,
        LocalTokenNotFoundError,
    )

    api = HfApi(library_name="penchant")
    operations: list[Any] = [CommitOperationAdd(file, one) for file, one in contents.items()]
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        if public:
            api.update_repo_settings(name, private=False)
        api.create_commit(name, operations, commit_message="Upload the model and its card")
        return f"{api.endpoint}/{name}"
    except LocalTokenNotFoundError as error:
        raise ConfigError(
            "the hub does not know who you are: hf auth login, or set HF_TOKEN"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        raise ConfigError(
            f"{api.endpoint} did not take {name}: {error}; hf auth whoami says who you are there"
        ) from error
