"""Convert preference data: between kinds, between strings and chat, between projects' layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from penchant.data.converting import projects as layouts
from penchant.data.converting.one_pass import KINDS, Run
from penchant.data.converting.textform import text_form
from penchant.data.opening import Sources
from penchant.data.records import DataError, counted
from penchant.data.writing import new_file, require_new

if TYPE_CHECKING:
    from penchant.data.opening import Source

TARGETS = (*KINDS, *layouts.PROJECTS)


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Args:
        read: what was read and refused, in words.
        written: how many records of which kind.
        alone: labels that are in no pair.
        lost: rows by what the target could not hold of them.
        output: the file that was written.
    """

    read: str
    written: str
    alone: int
    lost: Mapping[str, int]
    output: Path

    def summary(self) -> str:
        """Say in a few lines what was read, written and left out."""
        left_out = (
            f"; {counted(self.alone, 'label')} left out, without a partner: a completion of the "
            "other class for the same prompt"
        )
        first = f"{self.read}\nwrote {self.written} to {self.output}{left_out * bool(self.alone)}"
        lost = [f"  not kept: {what} ({counted(n, 'row')})" for what, n in self.lost.items()]
        return "\n".join([first, *lost])


def convert(
    source: Source,
    to: str | None,
    output: str | Path,
    *,
    origin: str | None = None,
    text: Literal["chat", "strings"] | None = None,
    template: str | Path | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Conversion:
    """Write preference data of one form in another; only what one row needs is in memory.

    Args:
        source: anything that `read_pairs` takes.
        to: `labels`, `pairs` or `prompts`, in the canonical layout; or a project whose layout
            to write: `trl`, `axolotl`, `llama-factory` or `openai`. None keeps the kind.
        output: a new `.jsonl`, `.jsonl.gz` or `.parquet` file; there whole or not at all.
        origin: the project whose layout the source is in, where its columns fit several.
        text: write all texts as chat messages, or all as strings.
        template: how strings stand for chats: a Jinja file, the folder of a tokenizer, `chatml`
            or `human_assistant`. Without one a string is a single message.
        split, columns: as for `read_pairs`.
        strict: raise when any row is refused, instead of counting it.

    Returns:
        What was read, written and left out, and what the target could not hold.

    Raises:
        DataError: `output` exists or cannot be written, the source cannot be read, its columns
            fit several layouts or none, nothing would change, or no row can be written.
    """
    target = Path(output)
    _check(to, origin, text, template)
    require_new(target)
    change = text_form(text, template)
    sources = Sources.of(source, split, columns)
    run = Run(sources.name, to, origin, change)
    with new_file(target) as writer:
        for row in run.rows(sources.items()):
            writer.write(row)
        run.check(writer.count, strict)
    noun = run.kind_written.removesuffix("s")
    return Conversion(run.read(), counted(writer.count, noun), run.alone, run.lost, target)


def _check(to: str | None, origin: str | None, text: str | None, template: object) -> None:
    if to is None and text is None:
        raise DataError("nothing to convert to; give to, or text as chat or strings")
    if to is not None and to not in TARGETS:
        raise DataError(f"to must be one of {', '.join(TARGETS)}, got {to!r}")
    if origin is not None and origin not in layouts.SOURCES:
        raise DataError(f"from must be one of {', '.join(layouts.SOURCES)}, got {origin!r}")
