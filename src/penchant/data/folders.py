"""Which files of a folder belong to a split: as its README.md says, or else by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penchant.data.files import TEXT_SUFFIX, data_suffix
from penchant.data.records import DataError, SplitError

# As the hub names shards: SPLIT-00000-of-00002.parquet.
SHARD = re.compile(r"(?:^|/)(\w+)-\d{5}-of-\d{5}")
WORDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test",
    "evaluation": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
WORD = re.compile(rf"(?<![a-z])({'|'.join(WORDS)})(?![a-z])")
# Written about data, by libraries and by the hub.
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def folder_files(folder: Path, split: str) -> list[Path]:
    """The files of a split, in the order of their names.

    Args:
        folder: a folder of shards, as a download from the hub leaves them or of anybody's making.
        split: where the folder has several.

    Raises:
        DataError: there are no data, no such split, or files that belong to no split.
    """
    splits = _by_readme(folder) or _by_name(folder)
    if not splits:
        raise DataError(f"{folder} has no data files in it; give a file, or a folder with some")
    if list(splits) == [""]:
        return splits[""]
    wanted = split if split in splits else WORDS.get(split, split)
    if wanted not in splits:
        raise SplitError(f"{folder} has no split '{split}'", splits)
    if "" in splits:
        raise DataError(
            f"{folder} has files for {wanted}, and others whose names say no split: "
            f"{', '.join(file.name for file in splits[''][:5])}; give the files to read, "
            f"such as '{folder}/*{wanted}*'"
        )
    return splits[wanted]


def data_files(folder: Path) -> list[Path]:
    """Every data file in a folder and the folders in it, by name; hidden ones left out."""
    return sorted(
        file
        for file in folder.rglob("*")
        if data_suffix(file) not in ("", TEXT_SUFFIX)
        and file.is_file()
        and file.name not in ABOUT
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Files by split; under "" those whose names say none, which may be all."""
    splits: dict[str, list[Path]] = {}
    for file in data_files(folder):
        splits.setdefault(_split_of(file.relative_to(folder).as_posix()), []).append(file)
    return splits


def _split_of(name: str) -> str:
    word = WORD.search(name.lower())
    if word is None:
        return ""
    shard = SHARD.search(name)
    return shard[1] if shard else WORDS[word[1]]


def _by_readme(folder: Path) -> dict[str, list[Path]]:
    """Files by split as the head of README.md lists them; nothing where it does not."""
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    import yaml

    head = re.match(r"---\s*\n(.*?)\n---", readme.read_text(encoding="utf-8"), re.DOTALL)
    try:
        about = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        raise DataError(f"the head of {readme} is not valid YAML: {error}") from error
    configs = about.get("configs") if isinstance(about, dict) else None
    if not configs:
        return {}
    return dict(_matched(folder, _config(folder, configs).get("data_files")))


def _config(folder: Path, configs: list[dict[str, Any]]) -> dict[str, Any]:
    """The only one, or the default."""
    default = [one for one in configs if one.get("default") or one.get("config_name") == "default"]
    if len(configs) == 1 or len(default) == 1:
        return (default or configs)[0]
    names = ""
    for one in configs:
        patterns = ", ".join(pattern for _, pattern in _patterns(one.get("data_files")))
        names += f"\n  {one.get('config_name')}: {patterns}"
    raise DataError(
        f"{folder / 'README.md'} lists several configurations, and none is the default; give the "
        f"files of one, such as '{folder}/PATTERN':{names}"
    )


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    """Split and pattern of each entry."""
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        named = isinstance(entry, dict)
        split, paths = (entry.get("split"), entry.get("path")) if named else ("train", entry)
        for path in paths if isinstance(paths, list) else [paths]:
            yield split, str(path)


def _matched(folder: Path, data_files: Any) -> Iterator[tuple[str, list[Path]]]:
    splits: dict[str, list[Path]] = {}
    for split, pattern in _patterns(data_files):
        files = sorted(file for file in folder.glob(pattern) if file.is_file())
        if not files:
            raise DataError(
                f"{folder / 'README.md'} names {pattern} for the split {split}, and no such file "
                "is there; download it, or give the files that are"
            )
        splits.setdefault(split, []).extend(files)
    yield from splits.items()
