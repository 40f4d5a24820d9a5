"""How many labels are flipped, where nobody voted: from a probe that cannot have learned by heart.

A linear probe on words is cross-validated over prompts. Where it is certain of held-out pairs and
yet a fixed share of their labels says otherwise, that share is noise: with m the probe's margin for
the label, the label is right with probability (1 - e) s(a m) + e s(-a m), s the logistic function.
The flip rate e and the scale a are those of the highest likelihood, which also decides how far the
probe is held to small weights: few pairs need that, many do not. e is only as certain as the probe,
so its interval (the likelihood's, 95%) goes with it. Where e is known, only the rest is fitted. A
probe cannot tell people's disagreement from mistakes: both are noise to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack
from scipy.special import expit
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from penchant.core.screen import track
from penchant.data.faults import joined
from penchant.data.records import Pair

NUM_FOLDS = 5
MIN_PAIRS = 200
READ_CHARACTERS = 4_000
NUM_BINS = 200
HALF_CHI2 = 1.92  # of one parameter, at 95%
RATES = np.linspace(0, 0.495, 100)
SCALES = np.geomspace(0.05, 50, 80)
# Inverse of the penalty on weights: a few hundred pairs bear the first, ten thousand the last.
PENALTIES = (0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Probe:
    """What cross-validation found.

    Attributes:
        accuracy: of held-out predictions.
        flip_rate: the most likely share of wrong labels; low, high: its interval. All three are
            the rate that was given, where one was.
        right: for each pair, the probability that its label is right.
        log_likelihood: of the labels.
        certain, disagreeing: mean probability of being right that the probe gives the clean
            label, and share of labels that disagree, by tenths of pairs from its least certain on.
    """

    accuracy: float
    flip_rate: float
    low: float
    high: float
    right: NDArray[np.float64]
    log_likelihood: float
    certain: list[float]
    disagreeing: list[float]


def probe_labels(
    pairs: Sequence[Pair], groups: NDArray[np.uint64], rate: float | None = None
) -> Probe | None:
    """Cross-validate a bag-of-words probe; None where there is too little to fit.

    Args:
        pairs: a sample.
        groups: of each, a hash of its prompt: a prompt is not on both sides of a fold.
        rate: the share of flipped labels, where it is known.
    """
    if len(pairs) < MIN_PAIRS or len(np.unique(groups)) < NUM_FOLDS:
        return None
    features = _features(pairs)
    rates = RATES if rate is None else np.array([rate])
    probes = []
    for penalty in track(PENALTIES, "label noise"):
        margins = _held_out_margins(features, groups, penalty)
        if scale := float(np.median(np.abs(margins))):
            probes.append(_estimate(margins / scale, rates))
    best = max((one.log_likelihood for one in probes), default=0.0)
    # The freest probe that the labels do not speak against: held down without need it misses what
    # the words say, and holds that for noise.
    free = (one for one in reversed(probes) if one.log_likelihood >= best - HALF_CHI2)
    return next(free, None)


def _features(pairs: Sequence[Pair]) -> csr_array:
    """Words of chosen less those of rejected, and the logarithm of their ratio of lengths."""
    words = HashingVectorizer(n_features=1 << 18, alternate_sign=False, token_pattern=r"\w+")
    sides = [
        words.transform(joined(text)[:READ_CHARACTERS] for text in texts)
        for texts in zip(*((pair.chosen, pair.rejected) for pair in pairs), strict=True)
    ]
    lengths = [[np.log1p(len(joined(p.chosen))) - np.log1p(len(joined(p.rejected)))] for p in pairs]
    return csr_array(hstack([sides[0] - sides[1], csr_array(np.array(lengths))], format="csr"))


def _held_out_margins(
    features: csr_array, groups: NDArray[np.uint64], penalty: float
) -> NDArray[np.float64]:
    """For each pair, how far a probe that has not seen its prompt prefers the chosen completion."""
    # A pair's order says which is chosen: half of them are reversed, so that there is a class
    # to tell. The same half each time.
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=features.shape[0])
    turned = csr_array(features.multiply(signs[:, None]))
    margins = np.empty(len(signs))
    for fitting, held_out in GroupKFold(NUM_FOLDS).split(signs, groups=groups):
        model = LogisticRegression(
            C=penalty, solver="liblinear", fit_intercept=False, random_state=0
        )
        model.fit(turned[fitting], signs[fitting])
        margins[held_out] = features[held_out] @ model.coef_[0]
    return margins


def _estimate(margins: NDArray[np.float64], rates: NDArray[np.float64]) -> Probe:
    """The most likely flip rate and scale, on a grid, over pairs binned by certainty."""
    order = np.argsort(np.abs(margins), kind="stable")
    bins = np.array_split(order, min(NUM_BINS, len(order)))
    sizes = np.array([np.abs(margins[rows]).mean() for rows in bins])
    agreeing = np.array([(margins[rows] > 0).sum() for rows in bins])
    against = np.array([len(rows) for rows in bins]) - agreeing
    clean = expit(SCALES[:, None] * sizes)  # [scales, bins]
    likelihood = np.array([_log_likelihood(rate, clean, agreeing, against) for rate in rates])
    best_rate, best_scale = np.unravel_index(likelihood.argmax(), likelihood.shape)
    profile = likelihood.max(axis=1)
    possible = rates[profile >= profile.max() - HALF_CHI2]
    rate, scale = float(rates[best_rate]), SCALES[best_scale]
    for_label = np.clip(expit(scale * margins), 1e-9, 1 - 1e-9)
    tenths = np.array_split(order, 10)
    return Probe(
        accuracy=float((margins > 0).mean()),
        flip_rate=rate,
        low=float(possible.min()),
        high=float(possible.max()),
        right=(1 - rate) * for_label / ((1 - rate) * for_label + rate * (1 - for_label)),
        log_likelihood=float(profile.max()),
        certain=[float(expit(scale * np.abs(margins[rows])).mean()) for rows in tenths],
        disagreeing=[float((margins[rows] <= 0).mean()) for rows in tenths],
    )


def _log_likelihood(
    rate: float,
    clean: NDArray[np.float64],
    agreeing: NDArray[np.int64],
    against: NDArray[np.int64],
) -> NDArray[np.float64]:
    """By scale: of as many labels agreeing with the probe's side, and against it, as there are."""
    agree = (1 - rate) * clean + rate * (1 - clean)
    disagree = np.maximum(1 - agree, 1e-12)
    return (agreeing * np.log(agree) + against * np.log(disagree)).sum(axis=1)
