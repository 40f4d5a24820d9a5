"""What preference data say about themselves: size, noise, bias of length, and what they lack."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from penchant.data.quality import LengthBias, Noise, measure_noise
from penchant.data.records import Label, LabelData, Pair, PairData, Text, is_chat, prompt_key

if TYPE_CHECKING:
    from penchant.data.lengths import TokenLengths

# Shares of pairs whose votes are not unanimous: from here on the signal is called so.
STRONG, NOISY, COIN_TOSS = 0.05, 0.25, 0.5
DETERMINISTIC = 0.02
NUM_RATED = 30  # fewer say too little
FEW = 100

Signal = Literal["unknown", "strong", "standard", "noisy", "coin toss"]


@dataclass(frozen=True)
class Findings:
    """What the data show.

    Attributes:
        kind: of the records.
        source, layout: as read.
        num_records, num_prompts: usable records, distinct prompts.
        num_ties, num_refused: rows left out.
        num_desirable: of labels; of pairs read as labels, one a pair.
        num_possible_pairs: desirable with undesirable completions of a prompt, for labels.
        num_contradicted: pairs that also occur the other way round.
        num_margins: pairs that state by how much the chosen completion is better.
        noise, length: None where the data cannot tell.
        tokens: by the model's tokenizer.
    """

    kind: Literal["pairs", "labels"]
    source: str
    layout: str
    num_records: int
    num_prompts: int
    num_ties: int
    num_refused: int
    num_desirable: int
    num_possible_pairs: int
    num_contradicted: int
    num_margins: int
    noise: Noise | None
    length: LengthBias | None
    tokens: TokenLengths

    @property
    def signal(self) -> Signal:
        """How clear the preferences are, by their votes or by contradictions."""
        return signal_of(self.num_records, self.num_contradicted, self.noise)

    @property
    def few(self) -> bool:
        """Whether there is too little to hold a method against."""
        return self.num_records < FEW

    @property
    def deterministic(self) -> bool:
        """Whether nearly every preference is unanimous."""
        rated = self.noise is not None and self.noise.num_rated >= NUM_RATED
        return bool(
            rated
            and self.noise
            and self.noise.split_share <= DETERMINISTIC
            and not self.num_contradicted
        )


def signal_of(num_records: int, num_contradicted: int, noise: Noise | None) -> Signal:
    """How clear preferences are, by their votes or by contradictions.

    Args:
        num_records: at least 1.
        num_contradicted: pairs that also occur the other way round.
        noise: of their votes, where there are any.
    """
    rated = noise is not None and noise.num_rated >= NUM_RATED
    share = max(noise.split_share if noise and rated else 0.0, num_contradicted / num_records)
    if share >= COIN_TOSS:
        return "coin toss"
    if share >= NOISY:
        return "noisy"
    if not rated:
        return "unknown"
    return "strong" if share <= STRONG else "standard"


def find(source: PairData | LabelData, tokens: TokenLengths) -> Findings:
    """Look at records; `tokens` are their lengths for the model."""
    pairs = source.pairs if isinstance(source, PairData) else []
    labels = source.labels if isinstance(source, LabelData) else []
    records: Sequence[Any] = pairs or labels
    return Findings(
        kind="pairs" if pairs else "labels",
        source=source.source,
        layout=source.layout,
        num_records=len(records),
        num_prompts=len({prompt_key(record) for record in records}),
        num_ties=source.ties,
        num_refused=len(source.refused),
        num_desirable=sum(label.desirable for label in labels) or len(pairs),
        num_possible_pairs=_possible_pairs(labels),
        num_contradicted=count_contradicted(pairs),
        num_margins=sum(pair.margin is not None for pair in pairs),
        noise=measure_noise([p.agreement for p in pairs if p.agreement is not None]),
        length=measure_length_bias(pairs) if pairs else None,
        tokens=tokens,
    )


def measure_length_bias(pairs: Sequence[Pair]) -> LengthBias:
    """How often the longer completion is the chosen one."""
    gaps = [_characters(pair.chosen) - _characters(pair.rejected) for pair in pairs]
    return LengthBias(
        longer_chosen=sum(gap > 0 for gap in gaps),
        shorter_chosen=sum(gap < 0 for gap in gaps),
        equal=sum(gap == 0 for gap in gaps),
    )


def _characters(text: Text) -> int:
    return sum(len(message["content"]) for message in text) if is_chat(text) else len(text)


def count_contradicted(pairs: Sequence[Pair]) -> int:
    """Pairs that also occur the other way round."""

    def key(*texts: Text) -> str:
        return json.dumps(texts, sort_keys=True)

    seen = {key(pair.prompt, pair.chosen, pair.rejected) for pair in pairs}
    return sum(key(pair.prompt, pair.rejected, pair.chosen) in seen for pair in pairs)


def _possible_pairs(labels: Sequence[Label]) -> int:
    counts: dict[str, list[int]] = {}
    for label in labels:
        counts.setdefault(prompt_key(label), [0, 0])[label.desirable] += 1
    return sum(good * bad for bad, good in counts.values())
