"""Open what the datasets library reads: its own objects, what it saved, ids on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from penchant.data.json_cells import unfilled
from penchant.data.lines import Item, Watch, numbered
from penchant.data.records import DataError, SplitError

if TYPE_CHECKING:
    import datasets

# How the library says that one of several configurations has to be named, or that there is no such.
CONFIGURATIONS = re.compile(r"(?s)(?:available configs?|Available):\s*(\[[^\]]+\])")
SPLITS = re.compile(r"Available splits:\s*(\[[^\]]+\])")
BATCH_ROWS = 1024


def dataset_rows(name: str, dataset: datasets.Dataset) -> Callable[[Watch | None], Iterator[Item]]:
    """What opens the rows of a dataset, numbered under a name."""
    # As Arrow holds them: images and audio would be decoded for nothing.
    table = dataset.with_format("arrow")

    def rows(_: Watch | None) -> Iterator[Item]:
        parts = (part.to_pylist() for part in table.iter(BATCH_ROWS))
        return numbered(name, (unfilled(row) for part in parts for row in part))

    return rows


def _no_split(name: str, split: str, splits: Iterable[object]) -> SplitError:
    return SplitError(f"{name} has no split '{split}'", splits)


def take_split(dataset: datasets.DatasetDict, split: str, name: str) -> datasets.Dataset:
    """One split of several.

    Raises:
        SplitError: there is no such.
    """
    if split not in dataset:
        raise _no_split(name, split, dataset)
    return dataset[split]


def load_saved(path: Path, split: str) -> datasets.Dataset:
    """What `Dataset.save_to_disk` wrote.

    Raises:
        SplitError: it has no such split.
    """
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        return take_split(loaded, split, str(path))
    return loaded


def load_hub(name: str, split: str, absent: str) -> datasets.Dataset:
    """A split of a dataset on the hub.

    Args:
        name: the id, where there are several configurations with `:` and the one that is meant.
        split: which to take.
        absent: that no file has this name, said where the hub does not know it either.

    Raises:
        DataError: the hub cannot serve it, or has several configurations.
        SplitError: it has no such split.
    """
    import datasets

    repository, _, configuration = name.partition(":")
    chosen = (configuration,) if configuration else ()
    try:
        loaded: datasets.Dataset = datasets.load_dataset(repository, *chosen, split=split)
    except Exception as error:
        if has := CONFIGURATIONS.search(str(error)):
            names = re.findall(r"'([^']+)'", has[1])
            raise DataError(
                f"{repository} has several configurations: {', '.join(names)}; name one of them "
                f"after the id: {repository}:{names[0]}"
            ) from error
        if has := SPLITS.search(str(error)):
            names = re.findall(r"'([^']+)'", has[1])
            raise _no_split(repository, split, names) from error
        # The library raises anything here: its own errors, those of HTTP clients, OSError.
        raise DataError(
            f"{absent}\nand the hub could not serve '{name}' (split '{split}') "
            f"either: {type(error).__name__}: {error}"
        ) from error
    return loaded
