"""What all readers of rows share: layouts, refusals, and how a value is shown to the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = Mapping[str, object]
Made = TypeVar("Made")

MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Layout:
    """A recognised arrangement of fields.

    Args:
        name: how messages and reports call it.
        fields: the fields that every row has; others are ignored.
    """

    name: str
    fields: tuple[str, ...]


class RowError(ValueError):
    """A row that cannot be used: a short stable reason, and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Kind(Generic[Made]):
    """What rows are read as.

    Args:
        name: how messages call one record.
        layouts: those that `recognise` tells apart.
        recognise: the layout of a row, or None.
        convert: makes a record of a row, given the layout of the rows before and its place;
            None for a tie.
        other: recognises the layouts of another kind of record.
        advice: what to do with rows of that kind; {} stands for the source on a command line.
        rewritten: whether a command may help where rows are in a known layout and are refused.
    """

    name: str
    layouts: tuple[Layout, ...]
    recognise: Callable[[object], Layout | None]
    convert: Callable[[object, Layout | None, str], Made | None]
    other: Callable[[object], Layout | None] | None = None
    advice: str = ""
    rewritten: bool = True


def fit(
    row: object,
    layout: Layout | None,
    recognise: Callable[[object], Layout | None],
    misfit: Callable[[Row, Layout | None], RowError],
    kept: Sequence[str] = (),
) -> tuple[Row, Layout]:
    """Require that a row has fields, in the layout of the rows before it.

    Args:
        row: anything.
        layout: the layout of the rows before, or None when no row has fitted one yet.
        recognise: tells a row's layout.
        misfit: says why a row is in no layout.
        kept: columns of `BESIDE` that the reader uses itself, or keeps.

    Returns:
        The row, and its layout.

    Raises:
        RowError: when it is no row, in no layout, or in another one than `layout`; or a part of
            the prompt stands beside it.
    """
    if not isinstance(row, Mapping):
        raise RowError("wrong type", f"a row must be an object with fields, got {shown(row)}")
    refuse_media(row, "the row")
    layout_of_row = recognise(row)
    if layout_of_row is None:
        raise misfit(row, layout)
    if layout is not None and layout_of_row != layout:
        raise RowError(
            "mixed formats",
            f"the row is in the layout '{layout_of_row.name}', the rows before it in "
            f"'{layout.name}'; keep one layout in a file",
        )
    _refuse_beside(row, kept)
    return row, layout_of_row


# Columns that belong to the prompt, by what reading does about them.
_AS_MESSAGE = (
    "'penchant data convert FILE --from axolotl --to trl --output NEW' puts it into the prompt as "
    "a message"
)
BESIDE = {
    "system": _AS_MESSAGE,
    "system_prompt": _AS_MESSAGE,
    "system_message": _AS_MESSAGE,
    "history": "'penchant data convert FILE --from llama-factory --to trl --output NEW' puts it "
    "into the prompt as messages",
    "input": "'penchant data convert FILE --from llama-factory --to trl --output NEW' puts it into "
    "the prompt",
    "context": "put it into the prompt",
    "documents": "put them into the prompt",
}
MEDIA = (
    "image",
    "images",
    "image_url",
    "input_image",
    "input_audio",
    "audio",
    "audios",
    "video",
    "videos",
)
# Columns that the chat template is given with the prompt.
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
FIELDS = (*BESIDE, *MEDIA, *TEMPLATE_COLUMNS)


def _refuse_beside(row: Row, kept: Sequence[str]) -> None:
    """Without its system message or its context a prompt is another one: none is lost unsaid."""
    for column, remedy in BESIDE.items():
        value = row.get(column)
        if column in kept or not value or (isinstance(value, str) and not value.strip()):
            continue
        firsts = (first_role(row.get("prompt")), first_role(row.get("chosen")))
        if column.startswith("system") and "system" in firsts:
            continue
        if is_given(row, "completion_a"):  # `data convert` reads no layout with both
            remedy = "put it into the prompt"
        raise RowError(
            f"{column} beside the prompt",
            f"'{column}' is {shown(value)}, and the prompt is read without it; {remedy}, or "
            "rename the column if it is no part of the prompt",
        )


def refuse_media(value: Row, field: str, kind_of_part: object = None) -> None:
    """Refuse what only a model of images, sound or video could read.

    Args:
        value: a row, a message, or a part of its content.
        field: what to call it.
        kind_of_part: the part's `type`; a column of that name says nothing.
    """
    names = [kind_of_part] if kind_of_part in MEDIA else [name for name in MEDIA if value.get(name)]
    if names:
        raise RowError(
            "images, sound or video",
            f"{field} has '{names[0]}', and no processor of images or sound is run here, nor a "
            "vision tower: of a model of images and text too, text alone is tuned; leave such "
            "rows out, or rename the column where the texts do without it",
        )


def first_role(value: object) -> object:
    """Who speaks first in messages; None for anything else."""
    chat = (value,) if isinstance(value, Mapping) else value
    first = chat[0] if isinstance(chat, list | tuple) and chat else None
    return first.get("role", first.get("from")) if isinstance(first, Mapping) else None


def is_given(row: Row, field: str) -> bool:
    """Whether a row has a field; tables fill the fields that a row lacks with nulls."""
    return row.get(field) is not None


def kind(value: object) -> str | None:
    """Tell "text" from "messages", or one message, by the type alone; None for anything else."""
    if isinstance(value, str):
        return "text"
    message = isinstance(value, Mapping) and ("role" in value or "from" in value)
    return "messages" if message or isinstance(value, list | tuple) else None


def shown(value: object) -> str:
    """Show a value on one short line; anything but a string with its type."""
    text = repr(value)
    if len(text) > MAX_SHOWN:
        text = f"{text[: MAX_SHOWN - 3]}..."
    return text if isinstance(value, str) else f"{type(value).__name__} {text}"
