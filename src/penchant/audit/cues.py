"""How well shallow traits of completions tell the preferred one, each alone, on held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.audit.patterns import CUES

OPENINGS = "opening words"
LENGTH = "length"
# An opening that was seen less often says nothing.
MIN_OPENING = 20


@dataclass(frozen=True)
class Cue:
    """One rule for choosing a completion, fitted on half of the prompts and tried on the others.

    Attributes:
        name: the trait.
        accuracy: on held-out pairs; where both completions have it or neither, a coin is tossed.
        differs: share of held-out pairs where it decides.
        favours: +1 where completions with more of it are chosen, -1 where those with less are.
        num_held_out: pairs that it was tried on.
    """

    name: str
    accuracy: float
    differs: float
    favours: int
    num_held_out: int

    @property
    def when_differs(self) -> float:
        """Accuracy on the pairs where it decides."""
        return 0.5 + (self.accuracy - 0.5) / self.differs if self.differs else 0.5

    @property
    def z(self) -> float:
        """Standard errors between the accuracy and that of a coin."""
        decided = self.differs * self.num_held_out
        return 2 * (self.when_differs - 0.5) * math.sqrt(decided)


def leanings(pairs: NDArray[Any]) -> Mapping[str, NDArray[np.int64]]:
    """By cue, for each pair: +1 where only, or more of, chosen has it, -1 rejected, else 0."""
    chosen, rejected = (pairs[f"{side}_cues"].astype(np.int64) for side in ("chosen", "rejected"))
    gap = pairs["chosen_characters"].astype(np.int64) - pairs["rejected_characters"]
    by_cue = {LENGTH: np.sign(gap)}
    for bit, name in enumerate(CUES):
        by_cue[name] = (chosen >> bit & 1) - (rejected >> bit & 1)
    return by_cue


def measure_cues(pairs: NDArray[Any]) -> list[Cue]:
    """Every cue, the most telling first.

    Args:
        pairs: rows of the table, of pairs; prompts go by their hash to one half or the other.
    """
    fitting = (pairs["prompt"] & np.uint64(1)).astype(np.bool_)
    return sorted(_measured(pairs, fitting), key=lambda cue: -cue.accuracy)


def _measured(pairs: NDArray[Any], fitting: NDArray[np.bool_]) -> Iterator[Cue]:
    for name, leaning in leanings(pairs).items():
        favours = 1 if leaning[fitting].sum() >= 0 else -1
        yield _tried(name, favours * leaning[~fitting], favours)
    yield _tried(OPENINGS, _opening_leaning(pairs, fitting), 1)


def _tried(name: str, verdicts: NDArray[Any], favours: int) -> Cue:
    signs = np.sign(verdicts)
    num = len(signs)
    accuracy = 0.5 + float(signs.sum()) / (2 * num) if num else 0.5
    return Cue(name, accuracy, float((signs != 0).mean()) if num else 0.0, favours, num)


def _opening_leaning(pairs: NDArray[Any], fitting: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of held-out pairs, by how much the fitting half speaks for the opening of the chosen one."""
    known = pairs[fitting]
    openings, number = np.unique(
        np.concatenate([known["chosen_opening"], known["rejected_opening"]]), return_inverse=True
    )
    wins, losses = (
        np.bincount(part, minlength=len(openings)) for part in number.reshape(2, len(known))
    )
    odds = np.log((wins + 1) / (losses + 1)) * (wins + losses >= MIN_OPENING)
    sides = []
    for side in ("chosen_opening", "rejected_opening"):
        values = pairs[~fitting][side]
        at = np.minimum(np.searchsorted(openings, values), max(len(openings) - 1, 0))
        repeated = openings[at] == values if len(openings) else np.zeros(len(values), np.bool_)
        sides.append(np.where(repeated, odds[at] if len(openings) else 0.0, 0.0))
    return sides[0] - sides[1]
