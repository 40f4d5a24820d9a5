"""The preference layouts of other projects: how to tell, read and write each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from penchant.data.converting import project_rows as foreign
from penchant.data.converting.project_rows import NewRow
from penchant.data.rows import labels
from penchant.data.rows import pairs as formats
from penchant.data.rows.row import Layout, Row, is_given

Kind = Literal["pairs", "labels"]


@dataclass(frozen=True)
class Exchange:
    """A layout of another project.

    Args:
        project: as `--to` and `--from` call it.
        columns: for messages.
        kind: what a row holds.
        used: the columns that `read` takes; others stand beside them.
        matches: whether a row is in it.
        read: a row as a canonical one.
        write: a record as a row; None where the layout is only read.
        others: whether further columns may stand beside; if not, `inner` names those that have
            a place within the first column of the layout.
    """

    project: str
    columns: str
    kind: Kind
    used: tuple[str, ...]
    matches: Callable[[Row], bool]
    read: Callable[[Row], NewRow]
    write: Callable[[Any], NewRow] | None = None
    others: bool = True
    inner: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The project and its columns."""
        return f"{self.project} ({self.columns})"


def _trl(layout: Layout, of: Kind) -> Exchange:
    recognise = formats.recognise if of == "pairs" else labels.recognise_label
    write = foreign.pair_texts if of == "pairs" else foreign.label_texts
    used = layout.fields
    if of == "labels":
        used = (*used, *(alias for field in used for alias in labels.ALIASES.get(field, ())))
    return Exchange("trl", layout.name, of, used, lambda row: recognise(row) == layout, dict, write)


PAIR = formats.PAIR_FIELDS
LAYOUTS = (
    *(_trl(layout, "pairs") for layout in formats.LAYOUTS),
    *(_trl(layout, "labels") for layout in labels.LAYOUTS),
    Exchange(
        "axolotl",
        "messages, chosen, rejected",
        "pairs",
        ("messages", *PAIR),
        lambda row: foreign.has(row, "messages", *PAIR),
        foreign.read_axolotl,
        foreign.write_axolotl,
    ),
    Exchange(
        "axolotl",
        "system, question or prompt, chosen, rejected",
        "pairs",
        ("system", "question", "prompt", *PAIR),
        lambda row: foreign.is_intel(row, *PAIR),
        foreign.read_intel,
    ),
    Exchange(
        "axolotl",
        "system, question or prompt, completion, label",
        "labels",
        ("system", "question", "instruction", "prompt", "completion", "label"),
        lambda row: foreign.is_intel(row, "completion") and is_given(row, "label"),
        foreign.read_axolotl_label,
        foreign.write_axolotl_label,
    ),
    Exchange(
        "llama-factory",
        "conversations, chosen, rejected",
        "pairs",
        ("conversations", "system", *PAIR),
        lambda row: foreign.has(row, "conversations", *PAIR),
        foreign.read_factory,
        foreign.write_factory,
    ),
    Exchange(
        "llama-factory",
        "conversations, kto_tag",
        "labels",
        ("conversations", "system", "kto_tag"),
        lambda row: foreign.has(row, "conversations", "kto_tag"),
        foreign.read_factory_label,
        foreign.write_factory_label,
    ),
    Exchange(
        "llama-factory",
        "instruction, input, chosen, rejected",
        "pairs",
        ("instruction", "input", "system", *PAIR),
        lambda row: foreign.has(row, "instruction", *PAIR) and "prompt" not in row,
        foreign.read_alpaca,
    ),
    Exchange(
        "openai",
        "input, preferred_output, non_preferred_output",
        "pairs",
        ("input", "preferred_output", "non_preferred_output"),
        foreign.is_openai,
        foreign.read_openai,
        foreign.write_openai,
        others=False,
        inner=foreign.OPENAI_INPUT,
    ),
)
PROJECTS = tuple(dict.fromkeys(layout.project for layout in LAYOUTS))


def target(project: str, of: Kind) -> Exchange | None:
    """The layout that a project's rows of a kind are written in; None where it has none."""
    found = (one for one in LAYOUTS if one.project == project and one.kind == of and one.write)
    return next(found, None)
