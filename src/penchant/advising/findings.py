"""What preference data say about themselves: size, noise, bias of length, and what they lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from penchant.data.cycles import count_contradicted
from penchant.data.noise import Noise, measure_noise
from penchant.data.quality import (
    FEW,
    LengthBias,
    Signal,
    measure_length_bias,
    signal_of,
)
from penchant.data.records import Data, Label, Pair, prompt_key

if TYPE_CHECKING:
    from penchant.data.lengths import TokenLengths

DETERMINISTIC = 0.02


@dataclass(frozen=True)
class Findings:
    """What the data show.

    Attributes:
        kind: of the records.
        source, layout: as read.
        num_records, num_prompts: usable records, distinct prompts.
        num_ties, num_refused: rows left out.
        num_desirable: of labels; of pairs read as labels, one per pair.
        num_possible_pairs: desirable with undesirable completions of a prompt, for labels.
        num_contradicted: pairs that also occur the other way round, or labels of completions that
            were judged both ways.
        num_margins: pairs that state by how much the chosen completion is better.
        noise, length: None where the data cannot tell.
        tokens: by the model's tokenizer.
    """

    kind: Literal["pairs", "labels", "prompts"]
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
        rated = self.noise is not None and self.noise.told
        return bool(
            rated
            and self.noise
            and self.noise.split_share <= DETERMINISTIC
            and not self.num_contradicted
        )


def find(source: Data[Any], tokens: TokenLengths) -> Findings:
    """Look at records; `tokens` are their lengths for the model."""
    records = source.records
    pairs = [record for record in records if isinstance(record, Pair)]
    labels = [record for record in records if isinstance(record, Label)]
    return Findings(
        kind="pairs" if pairs else "labels" if labels else "prompts",
        source=source.source,
        layout=source.layout,
        num_records=len(records),
        num_prompts=len({prompt_key(record) for record in records}),
        num_ties=source.ties,
        num_refused=len(source.refused),
        num_desirable=sum(label.desirable for label in labels) or len(pairs),
        num_possible_pairs=_possible_pairs(labels),
        num_contradicted=count_contradicted(records),
        num_margins=sum(pair.margin is not None for pair in pairs),
        noise=measure_noise([p.agreement for p in pairs if p.agreement is not None]),
        length=measure_length_bias(pairs) if pairs else None,
        tokens=tokens,
    )


def _possible_pairs(labels: Sequence[Label]) -> int:
    counts: dict[str, list[int]] = {}
    for label in labels:
        counts.setdefault(prompt_key(label), [0, 0])[label.desirable] += 1
    return sum(good * bad for bad, good in counts.values())
