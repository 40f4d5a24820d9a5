"""Ready reward functions, by short names: `gsm8k`, `math`, `regex:…`, `length:…`, `format`, ….

Each takes the batch by keyword, as a user's own function does, and gives one number an answer.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import cache
from typing import Any

from penchant.core.commands import install
from penchant.core.errors import ConfigError

# A minus after a digit, letter or bracket subtracts; elsewhere it is a sign.
NUMBER = re.compile(
    r"(?:(?<![\w)\]])([-−+]))?(?:\$\s?([-−])?)?"
    r"((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)
FINAL = "####"
INSIDE = r"(?:(?!</?(?:think|answer)>).)*"
# What a chat template opens for the answer, with or without closing it at once.
OPENED = re.compile(r"<think>\s*(?:</think>\s*)?$")
THINK = rf"\s*<think>{INSIDE}</think>\s*<answer>{INSIDE}</answer>\s*"


def gsm8k(completions: Sequence[str], answer: Sequence[Any], **_: Any) -> list[float]:
    """1.0 where the final number equals that of the reference answer, else 0.0.

    The final number is what follows `####` where that stands, else the last one in the text
    (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168). Commas, dollars, signs and decimals are
    read: "$1,200.00" equals "1200".

    Args:
        completions: the answers.
        answer: the reference answers, a column of the data.

    Raises:
        ValueError: a reference answer holds no number.
    """
    return [
        float(_is_right(given, right)) for given, right in zip(completions, answer, strict=True)
    ]


def _is_right(given: str, right: Any) -> bool:
    wanted = final_number(str(right))
    if wanted is None:
        raise ValueError(f"the reference answer {right!r} holds no number")
    return final_number(given) == wanted


def final_number(text: str) -> Decimal | None:
    """The first number after the last `####`, else the last number of the text, or None."""
    _, marker, behind = text.rpartition(FINAL)
    numbers = NUMBER.findall(behind if marker else text)
    if not numbers:
        return None
    sign, inner_sign, digits = numbers[0] if marker else numbers[-1]
    number = Decimal(digits.replace(",", ""))
    return -number if (sign in ("-", "−")) != bool(inner_sign) else number


def math(
    completions: Sequence[str],
    answer: Sequence[Any] | None = None,
    solution: Sequence[Any] | None = None,
    **_: Any,
) -> list[float]:
    """1.0 where the final answer equals the reference's in value, else 0.0, by math-verify.

    Numbers, fractions, LaTeX, sets, intervals and equations are compared as mathematics: `1/2`,
    `0.5` and `\\boxed{\\frac{1}{2}}` are equal.

    Args:
        completions: the answers.
        answer, solution: the reference answers, a column of the data under either name; where a
            row has both, its `answer` counts.

    Raises:
        ValueError: the data have neither column, a row has no reference answer, or it cannot be
            read.
    """
    parse, verify = _math_verify()
    if answer is None and solution is None:
        raise ValueError("the data have no column answer or solution, which hold what is right")
    nothing = [None] * len(completions)
    right = [
        either if either is not None else other
        for either, other in zip(answer or nothing, solution or nothing, strict=True)
    ]
    # Its time limit is an alarm of the process, which only the main thread may set.
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    scores = []
    for given, wanted in zip(completions, right, strict=True):
        if wanted is None:
            raise ValueError("the row has neither an answer nor a solution to compare with")
        gold = parse(str(wanted), parsing_timeout=limit) or parse(
            f"${wanted}$", parsing_timeout=limit
        )
        if not gold:
            raise ValueError(f"the reference answer {wanted!r} cannot be read as mathematics")
        found = parse(given, parsing_timeout=limit)
        scores.append(float(verify(gold, found, timeout_seconds=limit)))
    return scores


@cache
def _math_verify() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ConfigError(f"reward math needs math-verify: {install('math')}") from error
    return parse, verify


def regex(pattern: str) -> Callable[..., list[float]]:
    """1.0 where the pattern is found in the answer, else 0.0.

    Raises:
        ConfigError: the pattern is not a regular expression.
    """
    compiled = _compiled(pattern, "regex")

    def regex_reward(completions: Sequence[str], **_: Any) -> list[float]:
        return [float(compiled.search(text) is not None) for text in completions]

    return regex_reward


def whole_format(pattern: str) -> Callable[..., list[float]]:
    """1.0 where the whole answer has the form, in which a dot stands for line ends too.

    Where the prompt ends on `<think>`, as some chat templates have it, the tag counts as the start
    of the answer; a pattern of the user's own may fit the answer with that tag or without it.

    Args:
        pattern: a regular expression; empty or `think` for one `<think>…</think>` and after it one
            `<answer>…</answer>`.

    Raises:
        ConfigError: the pattern is not a regular expression.
    """
    own = pattern not in ("", "think")
    compiled = _compiled(pattern if own else THINK, "format", re.DOTALL)

    def format_reward(
        completions: Sequence[str], rendered_prompts: Sequence[str] | None = None, **_: Any
    ) -> list[float]:
        prompts = rendered_prompts or [""] * len(completions)
        return [
            float(any(map(compiled.fullmatch, _wholes(prompt, text, own))))
            for prompt, text in zip(prompts, completions, strict=True)
        ]

    return format_reward


def _wholes(prompt: str, text: str, either: bool) -> list[str]:
    """The answer after what its prompt opened; with `either` also the answer alone."""
    opened = OPENED.search(prompt)
    return [text] if opened is None else [opened[0] + text, *([text] if either else [])]


def length(target: str) -> Callable[..., list[float]]:
    """Closeness to a length in tokens, the end token among them: `1 - |tokens - N| / N`, or 0.

    Raises:
        ConfigError: the target is not a whole number above 0.
    """
    if not target.isdecimal() or not int(target):
        raise ConfigError(
            f"reward length:N needs a number of tokens, got {target!r}; try length:64"
        )
    wanted = int(target)

    def length_reward(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [max(0.0, 1 - abs(len(ids) - wanted) / wanted) for ids in completion_ids]

    return length_reward


def sentiment(completions: Sequence[str], **_: Any) -> list[float]:
    """VADER's compound score of each answer, in [-1, 1] (Hutto and Gilbert 2014)."""
    analyser = _analyser()
    return [float(analyser.polarity_scores(text)["compound"]) for text in completions]


@cache
def _analyser() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ConfigError(
            f"reward sentiment needs vaderSentiment: {install('sentiment')}"
        ) from error
    return SentimentIntensityAnalyzer()


def _compiled(pattern: str, name: str, flags: int = 0) -> re.Pattern[str]:
    if not pattern:
        raise ConfigError(f"reward {name}:PATTERN needs a regular expression after the colon")
    try:
        return re.compile(pattern, flags)
    except re.error as error:
        raise ConfigError(
            f"reward {name}:{pattern} is not a regular expression: {error}"
        ) from error


WITHOUT_ARGUMENT: dict[str, Callable[..., list[float]]] = {
    "gsm8k": gsm8k,
    "math": math,
    "sentiment": sentiment,
}
WITH_ARGUMENT: dict[str, Callable[[str], Callable[..., list[float]]]] = {
    "regex": regex,
    "length": length,
    "format": whole_format,
}
NAMES = (*WITHOUT_ARGUMENT, "regex:PATTERN", "length:N", "format", "format:PATTERN")


def ready(spec: str) -> tuple[str, Callable[..., list[float]]] | None:
    """The ready function that a short name means, with its name in metrics, or None.

    Raises:
        ConfigError: the name is one of them, and what stands after its colon is not right, or a
            package that it needs is missing.
    """
    name, colon, argument = spec.partition(":")
    if name in WITH_ARGUMENT and (colon or name == "format"):
        return name, WITH_ARGUMENT[name](argument)
    if spec not in WITHOUT_ARGUMENT:
        return None
    if needed := {"sentiment": _analyser, "math": _math_verify}.get(spec):
        needed()
    return spec, WITHOUT_ARGUMENT[spec]
