"""Open what the user named as data: a file, a folder, a dataset, a list, an id on the hub."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from operator import setitem
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from penchant.core.screen import track, track_bytes
from penchant.data.files import FIELDS, SUFFIXES, Item, Watch, data_suffix, numbered, open_file
from penchant.data.records import DataError

if TYPE_CHECKING:
    import datasets

    Source: TypeAlias = (
        str | Path | datasets.Dataset | datasets.DatasetDict | list[dict[str, object]]
    )

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class MissingDataError(DataError, FileNotFoundError):
    """Nothing is at the path that was given."""


def open_tracked(
    source: object, split: str, doing: str, *, prompts: bool = False
) -> tuple[str, Iterable[Item]]:
    """As `open_source`, with a progress bar on a terminal while the rows are read.

    Args:
        source, split, prompts: as for `open_source`.
        doing: what the bar says before the source's name, such as "reading".
    """
    read = [0]
    name, items = open_source(source, split, prompts=prompts, watch=partial(setitem, read, 0))
    if isinstance(source, str | Path) and (path := Path(source).expanduser()).is_file():
        # A whole path would push the figures behind it out of the line.
        watched = track_bytes(items, f"{doing} {path.name}", path.stat().st_size, lambda: read[0])
        return name, watched
    total = len(source) if isinstance(source, list | tuple) else None
    return name, track(items, f"{doing} {name}", total)


def open_source(
    source: object, split: str, *, prompts: bool = False, watch: Watch | None = None
) -> tuple[str, Iterable[Item]]:
    """Open a source; its rows are read as they are asked for.

    Args:
        source: one of `Source`.
        split: which split to take, where the source has several.
        prompts: keep every column, and take a .txt file as one prompt a line.
        watch: told how much of a file is read.

    Returns:
        How to call the source, and its rows with their places.

    Raises:
        DataError: it cannot be read, in part only once the rows are.
        MissingDataError: the path does not exist.
        TypeError: it is of another type.
    """
    if isinstance(source, str | Path):
        return _open_path(source, split, prompts, watch)
    if isinstance(source, list | tuple):
        return "the list", numbered("list", source)
    # A source can only be a dataset if its maker has imported the library, which is slow.
    if library := sys.modules.get("datasets"):
        if isinstance(source, library.DatasetDict):
            source = _take_split(source, split, "the dataset")
        if isinstance(source, library.Dataset):
            return "the dataset", _dataset_rows("dataset", source, prompts)
    raise TypeError(
        "data must be a path, a hub id, a datasets.Dataset or a list of dicts, "
        f"got {type(source).__name__}"
    )


def _open_path(
    source: str | Path, split: str, prompts: bool, watch: Watch | None
) -> tuple[str, Iterable[Item]]:
    path = Path(source).expanduser()
    if path.is_dir():
        return str(source), _dataset_rows(path.name, _load_folder(path, split), prompts)
    if path.exists():
        return str(source), open_file(path, split, prompts=prompts, watch=watch)
    # Path("a/b") is a path by its type: only a string can be meant as a hub id.
    named = isinstance(source, str) and HUB_ID.fullmatch(source)
    if named and not data_suffix(path, prompts=prompts):
        return str(source), _dataset_rows(str(source), _load_hub(str(source), path, split), prompts)
    raise MissingDataError(_no_such_file(path))


def _no_such_file(path: Path) -> str:
    message = f"no such file: {path}"
    if not path.parent.is_dir():
        return f"{message} (the folder {path.parent} does not exist either)"
    names = [entry.name for entry in path.parent.iterdir()]
    nearest = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if nearest:
        message += f"; did you mean {path.parent / nearest[0]}?"
    return message


# Datasets


def _dataset_rows(label: str, dataset: datasets.Dataset, every: bool) -> Iterator[Item]:
    # Other columns may be images or audio, which would be decoded for nothing.
    known = [
        column
        for column, feature in dataset.features.items()
        if column in FIELDS or (every and not hasattr(feature, "decode_example"))
    ]
    plain = dataset.with_format(None)
    yield from numbered(label, plain.select_columns(known) if known else plain)


def _take_split(dataset: datasets.DatasetDict, split: str, name: str) -> datasets.Dataset:
    if split not in dataset:
        has = ", ".join(map(str, dataset))
        raise DataError(f"{name} has no split '{split}'; it has: {has}; set split to one of these")
    return dataset[split]


def _load_folder(path: Path, split: str) -> datasets.Dataset:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        files = [entry.name for entry in sorted(path.iterdir()) if data_suffix(entry)]
        raise DataError(
            f"{path} is a folder that Dataset.save_to_disk did not write; give a file"
            + (f" in it: {', '.join(files[:5])}" if files else f" ({', '.join(SUFFIXES)})")
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        return _take_split(loaded, split, str(path))
    return loaded


def _load_hub(name: str, path: Path, split: str) -> datasets.Dataset:
    import datasets

    try:
        loaded: datasets.Dataset = datasets.load_dataset(name, split=split)
    except Exception as error:
        # The library raises anything here: its own errors, those of HTTP clients, OSError.
        raise DataError(
            f"{_no_such_file(path)}\nand the hub could not serve '{name}' (split '{split}') "
            f"either: {type(error).__name__}: {error}"
        ) from error
    return loaded


def as_argument(source: object) -> str:
    """A source as a command line would name it."""
    return str(source) if isinstance(source, str | Path) else "FILE"
