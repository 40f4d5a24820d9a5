"""How varied a set of answers is: pure functions over token ids or words.

Self-BLEU is computed here, in a few lines: the libraries that have BLEU bring tokenisers and
data of their own, and want strings where the ids are at hand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

Unit = Hashable
Answer = Sequence[Unit]

# Of an answer: "I am sorry" and "Sure, here is" are told from each other, "The" is not.
OPENING = 3
# A phrase that comes back; shorter ones do so in any text.
REPEATED = 3
ORDER = 4
"""BLEU's longest n-grams."""


def ngrams(answer: Answer, n: int) -> list[tuple[Unit, ...]]:
    """All runs of `n` units, in order."""
    return [tuple(answer[i : i + n]) for i in range(len(answer) - n + 1)]


def distinct(answers: Iterable[Answer], n: int) -> float:
    """Distinct n-grams over all n-grams of all answers, in (0, 1]; 0 where there are none.

    Li et al. 2016 (https://arxiv.org/abs/1510.03055), 5.2. It falls with the amount of text:
    compare sets of like number and length.
    """
    every = [gram for answer in answers for gram in ngrams(answer, n)]
    return len(set(every)) / len(every) if every else 0.0


def self_bleu(answers: Sequence[Answer]) -> float:
    """Mean BLEU-4 of each answer against all others, in [0, 1]; 1 where all are the same.

    Zhu et al. 2018 (https://arxiv.org/abs/1802.01886), 2.3. Empty answers are left out, and fewer
    than two give 0.
    """
    kept = [answer for answer in answers if len(answer)]
    if len(kept) < 2:
        return 0.0
    scores = [bleu(kept[i], kept[:i] + kept[i + 1 :]) for i in range(len(kept))]
    return math.fsum(scores) / len(scores)


def bleu(candidate: Answer, references: Sequence[Answer]) -> float:
    """BLEU of one candidate (Papineni et al. 2002), with n-grams up to four that it is long.

    An order without a match counts half a match, so that one missing 4-gram does not make
    everything 0.

    Args:
        candidate: at least one unit.
        references: at least one.
    """
    orders = range(1, min(ORDER, len(candidate)) + 1)
    logs = []
    for n in orders:
        own = Counter(ngrams(candidate, n))
        allowed: Counter[tuple[Unit, ...]] = Counter()
        for reference in references:
            allowed |= Counter(ngrams(reference, n))
        matches = (own & allowed).total()
        logs.append(math.log((matches or 0.5) / own.total()))
    closest = min((len(r) for r in references), key=lambda m: (abs(m - len(candidate)), m))
    brevity = min(0.0, 1 - closest / len(candidate))
    return math.exp(brevity + math.fsum(logs) / len(logs))


def same_opening(answers: Sequence[Answer], units: int = OPENING) -> float:
    """The share of answers that begin with the most frequent opening; 0 where none is shared.

    Args:
        answers: words, best in one case.
        units: how many make an opening.
    """
    if not answers:
        return 0.0
    ((_, most),) = Counter(tuple(answer[:units]) for answer in answers).most_common(1)
    return most / len(answers) if most > 1 else 0.0


def repetition(answers: Sequence[Answer], n: int = REPEATED) -> float:
    """The mean share of an answer's n-grams that repeat an earlier one of the same answer.

    Answers too short to have an n-gram count 0.
    """
    if not answers:
        return 0.0
    shares = []
    for answer in answers:
        grams = ngrams(answer, n)
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return math.fsum(shares) / len(shares)
