"""What all readers of rows share: layouts, refusals, and how a value is shown to the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Row = Mapping[str, object]

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


def fit(
    row: object,
    layout: Layout | None,
    recognise: Callable[[object], Layout | None],
    misfit: Callable[[Row, Layout | None], RowError],
) -> tuple[Row, Layout]:
    """Require that a row has fields, in the layout of the rows before it.

    Args:
        row: anything.
        layout: the layout of the rows before, or None when no row has fitted one yet.
        recognise: tells a row's layout.
        misfit: says why a row is in no layout.

    Returns:
        The row, and its layout.

    Raises:
        RowError: when it is no row, in no layout, or in another one than `layout`; or a system
            message stands beside its prompt.
    """
    if not isinstance(row, Mapping):
        raise RowError("wrong type", f"a row must be an object with fields, got {shown(row)}")
    found = recognise(row)
    if found is None:
        raise misfit(row, layout)
    if layout is not None and found != layout:
        raise RowError(
            "mixed formats",
            f"the row is in the layout '{found.name}', the rows before it in '{layout.name}'; "
            "keep one layout in a file",
        )
    _refuse_system_beside(row)
    return row, found


def _refuse_system_beside(row: Row) -> None:
    """Without its system message a prompt is another one: no row loses it unsaid."""
    system = row.get("system")
    if not isinstance(system, str) or not system.strip():
        return
    if "system" in (_first_role(row.get("prompt")), _first_role(row.get("chosen"))):
        return
    raise RowError(
        "system message beside the prompt",
        f"'system' is {shown(system)}, and prompts are read without it; "
        "'penchant data convert FILE --from axolotl --to trl --output NEW' puts it into the "
        "prompt as a message, or rename the column if it is none",
    )


def _first_role(value: object) -> object:
    chat = value if isinstance(value, list | tuple) else ()
    return chat[0].get("role") if chat and isinstance(chat[0], Mapping) else None


def is_given(row: Row, field: str) -> bool:
    """Whether a row has a field; tables fill the fields that a row lacks with nulls."""
    return row.get(field) is not None


def missing_field(row: Row, names: Sequence[str], layout: Layout) -> RowError:
    """Say that a row lacks a field, which may go by any of `names`."""
    state = "null" if any(name in row for name in names) else "absent"
    aliases = f", under this name or as {' or '.join(names[1:])}" if names[1:] else ""
    has = ", ".join(map(str, row)) or "no fields"
    return RowError(
        "missing field",
        f"'{names[0]}' is {state}; the layout '{layout.name}' needs it{aliases} "
        f"(the row has: {has})",
    )


def kind(value: object) -> str | None:
    """Tell "text" from "messages" by the type alone; None for anything else."""
    if isinstance(value, str):
        return "text"
    return "messages" if isinstance(value, list | tuple) else None


def needs_text_or_messages(field: str, value: object) -> str:
    """Say that a field has the wrong type."""
    return f"'{field}' must be a string or a list of messages, got {shown(value)}"


def shown(value: object) -> str:
    """Show a value on one short line; anything but a string with its type."""
    text = repr(value)
    if len(text) > MAX_SHOWN:
        text = f"{text[: MAX_SHOWN - 3]}..."
    return text if isinstance(value, str) else f"{type(value).__name__} {text}"
