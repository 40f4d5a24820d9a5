"""How arguments of TRL are taken, and refused all at once."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from penchant.compat.trl.tables import Standing
from penchant.core.errors import ConfigError, UserError


class Refusals:
    """What is refused of a script, gathered so that one error says all of it."""

    def __init__(self) -> None:
        self.errors: list[UserError] = []

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Keep a refusal for later."""
        try:
            yield
        except UserError as error:
            self.errors.append(error)

    def settle(
        self,
        arguments: Mapping[str, Any],
        standing: Standing,
        known: Iterable[str],
        without_effect: Collection[str] = (),
    ) -> list[str]:
        """Take arguments that no key stands for where they change nothing.

        Args:
            arguments: with their values.
            standing: which values say what happens anyway.
            known: the arguments that have keys, for a hint.
            without_effect: those that any value may be given to.

        Returns:
            Those among them that are in `without_effect`.
        """
        for name, value in arguments.items():
            if name not in without_effect:
                with self.gathering():
                    _refuse_or_pass(name, value, standing, [*known, *without_effect])
        return [name for name in arguments if name in without_effect]

    def raise_all(self) -> None:
        """Raise what was gathered.

        Raises:
            UserError: the one refusal, or a `ConfigError` with a line for each.
        """
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            lines = dict.fromkeys("\n".join(map(str, self.errors)).split("\n"))
            raise ConfigError("\n".join(lines))


class Arguments(BaseModel):
    """The arguments of a configuration, checked as they are given."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False
    )
    standing: ClassVar[Standing] = {}
    without_effect: ClassVar[frozenset[str]] = frozenset()
    # Older names of arguments.
    renamed: ClassVar[Mapping[str, str]] = {}
    _unheeded: list[str] = PrivateAttr(default_factory=list)

    def __init__(self, **arguments: Any) -> None:
        """Check the arguments.

        Raises:
            ConfigError: a line for each that is unknown, cannot have its effect, or is wrong.
        """
        refusals = Refusals()
        own = type(self).model_fields
        for older, name in self.renamed.items():
            value = arguments.pop(older, None)
            if value is not None and name in arguments:
                refusals.errors.append(ConfigError(f"{older} is {name}'s older name; drop it"))
            elif value is not None:
                arguments[name] = value
        others = {name: arguments.pop(name) for name in [*arguments] if name not in own}
        known = [*own, *self.renamed]
        unheeded = refusals.settle(others, self.standing, known, self.without_effect)
        # transformers has enumerations for some
        plain = {name: getattr(value, "value", value) for name, value in arguments.items()}
        try:
            super().__init__(**plain)
        except ValidationError as error:
            problems = error.errors()
            refusals.errors += [ConfigError(_explain(problem)) for problem in problems]
            wrong = {problem["loc"][0] for problem in problems}
            # What else is wrong is said with it.
            super().__init__(**{n: value for n, value in plain.items() if n not in wrong})
        self._unheeded = unheeded
        with refusals.gathering():
            self.check()
        refusals.raise_all()

    def check(self) -> None:
        """Require that the arguments agree.

        Raises:
            ConfigError: which do not, and what to set.
        """

    def unheeded(self) -> str:
        """What to say of the arguments that were taken without effect, if there are any."""
        if not self._unheeded:
            return ""
        return f"taken without effect, as they change no result: {', '.join(self._unheeded)}"


def _refuse_or_pass(name: str, value: Any, standing: Standing, known: Iterable[str]) -> None:
    """Accept a value that says what happens anyway.

    Args:
        name, value: of an argument that no key stands for.
        standing: the table that it may be in.
        known: the arguments that have keys, for a hint.

    Raises:
        ConfigError: the argument cannot have its effect here, or there is no such argument.
    """
    if name not in standing:
        raise ConfigError(_unknown(name, [*known, *standing]))
    accepted, why = standing[name]
    value = getattr(value, "value", value)  # transformers has enumerations for some
    if not any(type(value) is type(one) and value == one for one in accepted):
        raise ConfigError(f"{name}={value!r} cannot be had here: {why}")


def _unknown(name: str, known: list[str]) -> str:
    from dataclasses import fields

    from transformers import TrainingArguments

    if name in {field.name for field in fields(TrainingArguments)}:
        return f"{name} has no counterpart here; drop it"
    return f"unknown argument {name!r}; {nearest(name, known)}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at what may have been meant."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "drop it"


def _explain(problem: Any) -> str:
    """One line on a value that pydantic refused."""
    name = ".".join(str(part) for part in problem["loc"][:1])
    return f"{name} {problem['msg'].removeprefix('Input ')}, got {problem['input']!r}; set {name}"
