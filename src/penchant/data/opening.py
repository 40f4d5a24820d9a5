"""Open what the user named as data: files, folders, globs, datasets, lists, ids on the hub."""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from glob import glob, has_magic
from operator import setitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from penchant.core.screen import track
from penchant.data.cells import typed
from penchant.data.files import data_suffix, open_file
from penchant.data.lines import Item, Watch, numbered
from penchant.data.records import DataError, Refusal, SplitError
from penchant.data.rows.row import Row, RowError

if TYPE_CHECKING:
    import datasets

    from penchant.data.columns import Names

    OneSource: TypeAlias = (
        str | Path | datasets.Dataset | datasets.DatasetDict | list[dict[str, object]]
    )
    Source: TypeAlias = "OneSource | list[OneSource] | Sources"

# A dataset on the hub, where it has several configurations with the one that is meant.
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(?::[\w.-]+)?")
NUM_NAMED = 3
R = TypeVar("R")


class MissingDataError(DataError, FileNotFoundError):
    """Nothing is at the path that was given."""


@dataclass(frozen=True)
class Part:
    """What is read in one go: a file, a split of a dataset, or a list.

    Args:
        name: how places call it, such as `pairs.jsonl`.
        rows: opens it; called with what is told how many bytes of a file are read.
        path: of a file.
        total: its number of rows, where that is known.
    """

    name: str
    rows: Callable[[Watch | None], Iterable[Item]]
    path: Path | None = None
    total: int | None = None

    def tracked(self, doing: str) -> Iterator[Item]:
        """The rows, with a progress bar on a terminal; `doing` stands before the name."""
        if self.path is None:
            return track(self.rows(None), f"{doing} {self.name}", self.total)
        from penchant.core.file_progress import track_bytes

        read = [0]
        rows = self.rows(partial(setitem, read, 0))
        size = self.path.stat().st_size
        # A whole path would push the figures after it out of the line.
        return track_bytes(rows, f"{doing} {self.path.name}", size, lambda: read[0])


@dataclass(frozen=True)
class Sources:
    """What the user named as data, and how it is to be read.

    Args:
        data: a source, or a list of sources, which are read in the order of the list.
        split: which split to take of a source that has several.
        columns: the source's own name of a column, by the name used here.
        split_key: the option that sets `split`.
        model: of the run that reads them, for the commands in messages.
    """

    data: Any
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)
    split_key: str = "split"
    model: str = ""

    @classmethod
    def of(
        cls,
        data: Any,
        split: str = "train",
        columns: Mapping[str, str] | None = None,
        split_key: str = "split",
    ) -> Sources:
        """The sources as given, or what a caller has put together already."""
        return data if isinstance(data, Sources) else cls(data, split, columns or {}, split_key)

    @property
    def name(self) -> str:
        """How to call them, as the user named them."""
        names = [_name(one) for one in self._each()]
        more = len(names) - NUM_NAMED
        return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")

    @property
    def argument(self) -> str:
        """The sources as a command line would name them, with how they are read."""
        paths = [one for one in self._each() if isinstance(one, str | Path)]
        words = [shlex.quote(str(one)) for one in paths] or ["FILE"]
        if self.split != "train":
            words.append(f"--split {shlex.quote(self.split)}")
        if self.columns:
            from penchant.data.columns import written

            words.append(f"--columns {shlex.quote(written(self.columns))}")
        return " ".join(words)

    @cached_property
    def parts(self) -> list[Part]:
        """Every part, in the order in which they are read; places tell them apart.

        Raises:
            DataError: a source cannot be opened, or has no such split.
            MissingDataError: there is nothing at a path.
            TypeError: a source is of another type.
        """
        parts = [part for one in self._each() for part in self._opened(partial(self._parts, one))]
        times = Counter(part.name for part in parts)
        unique: list[Part] = []
        for number, part in enumerate(parts, start=1):
            if times[part.name] > 1:
                name = str(part.path) if part.path else f"{part.name} {number}"
                part = self._file(part.path, name) if part.path else replace(part, name=name)
            unique.append(replace(part, rows=partial(self._rows, part)))
        return unique

    def items(self, doing: str = "reading") -> Iterator[Item]:
        """The rows of all parts, with a progress bar on a terminal."""
        for part in self.parts:
            yield from part.tracked(doing)

    def _each(self) -> list[Any]:
        several = isinstance(self.data, list | tuple) and _all_sources(self.data)
        return list(self.data) if several else [self.data]

    def _opened(self, items: Callable[[], Iterable[R]]) -> Iterator[R]:
        """What is there to read; where that is another split, with the option that names it."""
        try:
            yield from items()
        except SplitError as error:
            option = f"--{self.split_key}"
            raise DataError(
                f"{error}; it has: {', '.join(error.names)}; name the one to read with {option} "
                f"NAME, such as {option} {shlex.quote(error.names[0])}"
            ) from error

    def _rows(self, part: Part, watch: Watch | None) -> Iterator[Item]:
        """The rows of a part under the names used here, with what their texts stand for."""
        names: Names | None = None
        if self.columns:
            from penchant.data.columns import Names

            names = Names(self.columns)
        for item in self._opened(partial(part.rows, watch)):
            if isinstance(item, Refusal) or not isinstance(item[1], Mapping):
                yield item
                continue
            where, row = item[0], _unwrapped(item[1])
            try:
                yield where, typed(names.rename(row, item[1]) if names else row)
            except RowError as error:
                yield Refusal(where, error.reason, error.detail)
        if names:
            names.require_found(part.name)

    def _parts(self, source: Any) -> Iterator[Part]:
        if isinstance(source, str | Path):
            yield from self._path_parts(source)
            return
        if isinstance(source, list | tuple):
            yield Part("list", lambda _: numbered("list", source), total=len(source))
            return
        # A source can only be a dataset if its maker has imported the library, which is slow.
        if library := sys.modules.get("datasets"):
            if isinstance(source, library.DatasetDict):
                from penchant.data.hub import take_split

                source = take_split(source, self.split, "the dataset")
            if isinstance(source, library.Dataset):
                yield _dataset_part("dataset", source)
                return
        raise TypeError(
            "data must be a path, a hub id, a datasets.Dataset or a list of dicts, "
            f"got {type(source).__name__}"
        )

    def _path_parts(self, source: str | Path) -> Iterator[Part]:
        path = Path(source).expanduser()
        if path.is_dir():
            if _is_saved(path):
                from penchant.data.hub import load_saved

                yield _dataset_part(path.name, load_saved(path, self.split))
                return
            from penchant.data.folders import folder_files

            for file in folder_files(path, self.split):
                yield self._file(file, file.relative_to(path).as_posix())
        elif path.exists():
            yield self._file(path, path.name)
        elif has_magic(str(source)):
            matches = sorted(glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
            if not matches:
                raise MissingDataError(f"no file matches {source}")
            for match in matches:
                yield from self._path_parts(match)
        # Path("a/b") is a path by its type: only a string can be meant as a hub id.
        elif isinstance(source, str) and HUB_ID.fullmatch(source) and not data_suffix(path):
            from penchant.data.hub import load_hub
            from penchant.data.missing import no_such_file

            dataset = load_hub(source, self.split, no_such_file(path))
            yield _dataset_part(source, dataset)
        else:
            from penchant.data.missing import no_such_file

            raise MissingDataError(no_such_file(path))

    def _file(self, path: Path, name: str) -> Part:
        return Part(name, lambda watch: open_file(path, self.split, name=name, watch=watch), path)


def _unwrapped(row: Row) -> Row:
    """The row that stands within a row; nearly all hold no object that could be one."""
    if not any(isinstance(one, Mapping) or _opens_object(one) for one in row.values()):
        return row
    from penchant.data.nested import unwrapped

    return unwrapped(row)


def _opens_object(value: object) -> bool:
    return isinstance(value, str) and value.lstrip()[:1] == "{"


def path_names(data: Any) -> list[str]:
    """The paths and ids that data are; empty where they are objects."""
    several = list(data) if isinstance(data, list | tuple) else [data]
    return [str(one) for one in several] if all(isinstance(o, str | Path) for o in several) else []


def _all_sources(data: Iterable[Any]) -> bool:
    """Whether a list holds sources; a list of rows, sound or not, is one source itself."""
    library = sys.modules.get("datasets")
    loaded = (library.Dataset, library.DatasetDict) if library else ()
    sources = [isinstance(one, (str, Path, *loaded)) for one in data]
    return bool(sources) and all(sources)


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return "the list" if isinstance(source, list | tuple) else "the dataset"


def _dataset_part(name: str, dataset: datasets.Dataset) -> Part:
    from penchant.data.hub import dataset_rows

    return Part(name, dataset_rows(name, dataset), total=len(dataset))


def _is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
