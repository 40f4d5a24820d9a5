"""How long records are in tokens, and the lengths that cover them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penchant.core.errors import ConfigError
from penchant.data.prompts import Prompt
from penchant.data.records import Label

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_SAMPLED = 2000
SEED = 0
COVERED = 0.99
STEP = 64
ANSWER_LENGTH = 128  # of an answer that is sampled: the default of max_completion_length
UNCUT = 1 << 30  # tokens: longer than any text


@dataclass(frozen=True)
class Percentiles:
    """Nearest-rank percentiles, in tokens."""

    p50: int
    p90: int
    p99: int
    longest: int


@dataclass(frozen=True)
class Cut:
    """Shares of the sampled records that two lengths would cut."""

    max_length: int
    max_prompt_length: int
    prompts: float
    completions: float
    records: float


@dataclass(frozen=True)
class TokenLengths:
    """Lengths for one tokenizer; `total` is a prompt with the longer of its completions.

    Attributes:
        num_sampled: records that were tokenised; num_dropped: those that cannot be.
        cut: by the lengths that are recommended, and `cut_by_default` by the configuration's.
    """

    num_sampled: int
    num_dropped: int
    prompt: Percentiles
    completion: Percentiles
    total: Percentiles
    cut: Cut
    cut_by_default: Cut


@dataclass(frozen=True)
class Sample:
    """Token counts: of each record its prompt and its completions.

    Attributes:
        rows: the counts.
        num_dropped: records that cannot be tokenised.
        places: where each of the others is.
    """

    rows: list[tuple[int, tuple[int, ...]]]
    num_dropped: int
    places: list[str] = field(default_factory=list)
    _sizes: dict[tuple[int, int, int], list[tuple[int, int]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def lengths(
        self, context: int | None, max_length: int | None, max_prompt_length: int | None
    ) -> TokenLengths:
        """Percentiles, and what the lengths that suit them (or those given) would cut."""
        length, prompt_length = choose_lengths(self, context, max_length, max_prompt_length)
        return TokenLengths(
            num_sampled=len(self.rows),
            num_dropped=self.num_dropped,
            prompt=_percentiles([prompt for prompt, _ in self.rows]),
            completion=_percentiles([n for _, answers in self.rows for n in answers]),
            total=_percentiles(self._totals()),
            cut=self.cut(length, prompt_length),
            cut_by_default=self.cut(1024, 512),
        )

    def cut(self, max_length: int, max_prompt_length: int) -> Cut:
        """What training with these lengths would cut, as its tokeniser counts it."""
        prompts, answers = self.cut_rows(max_length, max_prompt_length)
        either = [a or b for a, b in zip(prompts, answers, strict=True)]
        shares = (sum(flags) / len(flags) for flags in (prompts, answers, either))
        return Cut(max_length, max_prompt_length, *shares)

    def cut_rows(self, max_length: int, max_prompt_length: int) -> tuple[list[bool], list[bool]]:
        """Of each record, whether its prompt would be cut, and whether a completion would."""
        prompts = [prompt > max_prompt_length for prompt, _ in self.rows]
        answers = [
            min(prompt, max_prompt_length) + max(lengths) > max_length
            for prompt, lengths in self.rows
        ]
        return prompts, answers

    def longest_pass(self, cut: Cut, num_records: int, answers: int) -> tuple[int, int]:
        """Tokens of the longest micro-batch, and of these the completions'.

        Each prompt is laid out once, with `answers` completions.
        """
        key = (cut.max_length, cut.max_prompt_length, answers)
        if key not in self._sizes:  # an adviser asks for many plans of the same lengths
            self._sizes[key] = sorted(self._laid_out(*key), reverse=True)
        largest = self._sizes[key][:num_records]
        return sum(total for total, _ in largest), max(sum(c for _, c in largest), 1)

    def _laid_out(
        self, max_length: int, max_prompt_length: int, answers: int
    ) -> Iterator[tuple[int, int]]:
        """Tokens of each record, and of these the completions'."""
        for prompt, lengths in self.rows:
            kept = min(prompt, max_prompt_length)
            room = max_length - kept
            longest = sorted((min(n, room) for n in lengths), reverse=True)
            missing = answers - len(longest)
            completions = sum(longest[:answers]) + max(missing, 0) * longest[0]
            yield kept + completions, completions

    def _totals(self) -> list[int]:
        return [prompt + max(answers) for prompt, answers in self.rows]


def sample_lengths(records: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> Sample:
    """Tokenise at most `NUM_SAMPLED` records, always the same ones, as `measure_lengths` does."""
    chosen = range(len(records))
    some = random.Random(SEED).sample(chosen, min(NUM_SAMPLED, len(records)))
    return measure_lengths([records[i] for i in sorted(some)], tokenizer)


def measure_lengths(records: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> Sample:
    """Tokenise records, without cutting.

    Raises:
        ConfigError: none of them can be tokenised.
        ModelError: chat messages for a model without a template, or no EOS token.
    """
    from penchant.data.token_report import TokenReport
    from penchant.data.tokenise import TokenisedPair, Tokeniser
    from penchant.data.tokenised import TokenisedLabel, TokenisedPrompt

    tokeniser = Tokeniser(tokenizer, max_length=UNCUT, max_prompt_length=UNCUT - 1)
    examples: Sequence[TokenisedPair | TokenisedLabel | TokenisedPrompt]
    report: TokenReport
    if isinstance(records[0], Prompt):
        examples, report = tokeniser.prompts(records)
    elif isinstance(records[0], Label):
        examples, report = tokeniser.labels(records)
    else:
        examples, report = tokeniser.pairs(records)
    if not examples:
        raise ConfigError(f"no record is left after tokenising ({report.summary()})")
    groups = [example.group() for example in examples]
    # A prompt has no answer yet: as long as the sampling methods let it be.
    rows = [
        (len(g.prompt), tuple(len(ids) for ids in g.completions) or (ANSWER_LENGTH,))
        for g in groups
    ]
    return Sample(rows, sum(report.dropped.values()), [example.where for example in examples])


def choose_lengths(
    sample: Sample, context: int | None, max_length: int | None, max_prompt_length: int | None
) -> tuple[int, int]:
    """`max_length` and `max_prompt_length` that cover `COVERED` of the records.

    Multiples of `STEP`, within the model's context. Where that is too short, completions get what
    they need up to one half of it, and prompts the rest.

    Args:
        context: of the model, in tokens, where it has a limit.
        max_length, max_prompt_length: given by the user, and then kept.
    """
    prompts = [prompt for prompt, _ in sample.rows]
    answers = [n for _, lengths in sample.rows for n in lengths]
    totals = [prompt + max(lengths) for prompt, lengths in sample.rows]
    prompt_length = max_prompt_length or _rounded(percentile(prompts, COVERED))
    length = max_length or max(_rounded(percentile(totals, COVERED)), prompt_length + STEP)
    bound = max_length or max(2, min(length, context or length))
    needed = percentile(totals, COVERED) > bound or prompt_length >= bound
    if max_prompt_length is None and needed:
        room = min(_rounded(percentile(answers, COVERED)), bound // 2)
        prompt_length = min(prompt_length, max(1, bound - room))
    return bound, prompt_length


def percentile(values: Sequence[int], share: float) -> int:
    """The smallest value that is at least as large as this share of all."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _percentiles(values: Sequence[int]) -> Percentiles:
    return Percentiles(*(percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)))


def _rounded(tokens: int) -> int:
    return max(STEP, math.ceil(tokens / STEP) * STEP)
