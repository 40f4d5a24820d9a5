"""Rewards that are Python functions: found by name, called with what they ask for, and checked."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from penchant.core.errors import RewardError
from penchant.data.rows.messages import plain
from penchant.rl.rewards.samples import Sample

if TYPE_CHECKING:
    from penchant.data.prompts import Prompt

GIVEN = ("prompts", "rendered_prompts", "completions", "completion_ids")


def require_columns(rewards: Sequence[object], prompts: Iterable[Prompt]) -> None:
    """Require that the functions among some rewards can be called for each of the prompts.

    Raises:
        RewardError: one needs a column that a prompt lacks.
    """
    functions = [one for one in rewards if isinstance(one, FunctionReward)]
    for prompt in prompts if functions else ():
        for function in functions:
            function.check(prompt.fields, prompt.where)


class RewardTimeoutError(Exception):
    """A call took longer than it may."""


class FunctionReward:
    """A function of a batch, called by keyword as `function(prompts=…, completions=…, …)`.

    It is given what its signature names, or everything where it takes `**kwargs`: `prompts`
    (strings or lists of messages), `rendered_prompts` (strings, as the policy read them),
    `completions` (strings), `completion_ids` (lists of token ids) and each column of the data as a
    list. It returns one number for each answer; None where it has none.

    Args:
        function: the callable.
        name: by which metrics and messages call it.
        timeout: seconds that a call may take; None for no limit. The call runs in a thread, which
            cannot be stopped: what took too long goes on after the error until it returns, and
            code that holds the interpreter's lock all along, such as one regular expression,
            delays the error until then.

    Raises:
        RewardError: its signature cannot be read, or it takes arguments by position only.
    """

    def __init__(
        self, function: Callable[..., Any], name: str, *, timeout: float | None = None
    ) -> None:
        self.function, self.name, self.timeout = function, name, timeout
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward {name}: the signature of {function!r} cannot be read; wrap it in a "
                "function with named arguments"
            ) from error
        kinds = {one.name: one.kind for one in parameters}
        by_position = [n for n, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_ONLY]
        if by_position:
            raise RewardError(
                f"reward {name} takes {', '.join(by_position)} by position only; it is called by "
                f"keyword, so drop the / from its signature"
            )
        self._takes_all = inspect.Parameter.VAR_KEYWORD in kinds.values()
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        self._named = {n for n, kind in kinds.items() if kind not in variadic}
        self._required = [
            one.name
            for one in parameters
            if one.default is inspect.Parameter.empty and one.kind not in variadic
        ]

    def check(self, columns: Collection[str], where: str = "the data") -> None:
        """Require that the function can be called with these columns of the data.

        Args:
            columns: by name; where: whose they are, for the message.

        Raises:
            RewardError: it needs an argument that is none of them.
        """
        missing = [n for n in self._required if n not in GIVEN and n not in columns]
        if not missing:
            return
        has = ", ".join(sorted(set(columns) - set(GIVEN))) or "none"
        raise RewardError(
            f"reward {self.name} needs the argument {', '.join(map(repr, missing))}, and {where} "
            f"has no such column (it has: {has}); rename the column or the argument, or give the "
            f"argument a default. Always given: {', '.join(GIVEN)}"
        )

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """One number a sample, NaN for None.

        Raises:
            RewardError: the signature asks for what there is not, or the result is not a number
                for each sample.
            RewardTimeoutError: the call took too long.
            Exception: whatever the function raises.
        """
        columns = dict.fromkeys(name for sample in samples for name in sample.fields)
        self.check(columns)
        given: dict[str, list[Any]] = {
            **{name: [sample.fields.get(name) for sample in samples] for name in columns},
            "prompts": [plain(sample.prompt) for sample in samples],
            "rendered_prompts": [sample.rendered for sample in samples],
            "completions": [sample.completion for sample in samples],
            "completion_ids": [list(sample.completion_ids) for sample in samples],
        }
        passed = given if self._takes_all else {n: v for n, v in given.items() if n in self._named}
        return self._numbers(self._run(passed), samples)

    def _run(self, passed: dict[str, Any]) -> Any:
        if self.timeout is None:
            return self.function(**passed)
        returned: list[Any] = []
        raised: list[BaseException] = []

        def work() -> None:
            try:
                returned.append(self.function(**passed))
            except BaseException as error:
                raised.append(error)

        # A daemon: a call that never returns does not keep the process alive.
        thread = threading.Thread(target=work, name=f"reward {self.name}", daemon=True)
        thread.start()
        thread.join(self.timeout)
        if raised:
            raise raised[0]
        if not returned:
            raise RewardTimeoutError(f"it took longer than {self.timeout:g} s (reward_timeout)")
        return returned[0]

    def _numbers(self, result: Any, samples: Sequence[Sample]) -> list[float]:
        if hasattr(result, "tolist"):  # arrays and tensors
            result = result.tolist()
        if not isinstance(result, list | tuple):
            raise RewardError(
                f"reward {self.name} must return a list with a number for each completion, got "
                f"{type(result).__name__}"
            )
        if len(result) != len(samples):
            raise RewardError(
                f"reward {self.name} returned {len(result)} numbers for {len(samples)} "
                "completions; return one for each, in their order"
            )
        return [self._number(v, sample) for v, sample in zip(result, samples, strict=True)]

    def _number(self, value: Any, sample: Sample) -> float:
        if value is None:
            return float("nan")
        try:
            if isinstance(value, str | bytes):
                raise TypeError("text is not a number")
            return float(value)
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward {self.name} returned {value!r} ({type(value).__name__}) for "
                f"{sample.describe()}; return a number, or None where there is no score"
            ) from error


def load_function(spec: str) -> Callable[..., Any]:
    """Import the function that `package.module:function` or `path/to/file.py:function` names.

    Modules are looked for in the working directory too.

    Raises:
        RewardError: there is no such module, file or function, or importing it fails.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise RewardError(f"reward {spec!r} must be package.module:function or file.py:function")
    module = _import_file(spec, place) if place.endswith(".py") else _import_module(spec, place)
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            known = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has: {', '.join(known) or 'none'}"
            raise RewardError(f"reward {spec}: {place} has no function {name}; {hint}")
        function = getattr(function, part)
    if not callable(function):
        raise RewardError(f"reward {spec}: {name} is a {type(function).__name__}, not a function")
    return function


def functions_in(file: str) -> list[str]:
    """What could be named of a Python file as a reward, as `file.py:function`.

    Raises:
        RewardError: there is no such file, or importing it fails.
    """
    module = _import_file(file, file)
    public = {name: value for name, value in vars(module).items() if name[0] != "_"}
    own = [n for n, v in public.items() if getattr(v, "__module__", None) == module.__name__]
    return [f"{file}:{name}" for name in own if callable(public[name])]


def _import_module(spec: str, name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _import_error(spec, error) from error
        several = "; several rewards are several --reward, one name each" if "," in name else ""
        raise RewardError(
            f"reward {spec}: no module {error.name} is installed or lies in {here}; give a file "
            f"as path/to/file.py:function{several}"
        ) from error
    except Exception as error:
        raise _import_error(spec, error) from error


def _import_file(spec: str, name: str) -> ModuleType:
    path = Path(name).expanduser()
    if not path.is_file():
        raise RewardError(f"reward {spec}: no such file: {path}")
    module_spec = importlib.util.spec_from_file_location(f"penchant_reward_{path.stem}", path)
    assert module_spec is not None and module_spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and pickle look a module up by its name.
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise _import_error(spec, error) from error
    return module


def _import_error(spec: str, error: Exception) -> RewardError:
    return RewardError(f"reward {spec}: importing it failed: {type(error).__name__}: {error}")
