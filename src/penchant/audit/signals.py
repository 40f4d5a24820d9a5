"""What the data show on the whole: shallow cues, noise, languages, lengths in tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.audit.cues import LENGTH, Cue, leanings
from penchant.audit.finding import NO_ROWS, Finding, Severity
from penchant.audit.probe import Probe, probe_labels
from penchant.audit.rules import slug
from penchant.audit.scan import Scan
from penchant.core.screen import track
from penchant.data.faults import FILE, answers, joined
from penchant.data.near import Indices, combined
from penchant.data.noise import NOISY_LABELS, Noise, severity_of_noise
from penchant.data.quality import BIASED, LengthBias
from penchant.data.records import Pair, counted

CUE_Z, CUE_WHEN_DIFFERS = 4.0, 0.6
MIN_LANGUAGE_SHARE = 0.01
# Below these, a detector guesses.
LANGUAGE_CHARACTERS, LANGUAGE_PROBABILITY = 60, 0.95
DETECTED_CHARACTERS = 200


def length_bias(table: NDArray[Any]) -> LengthBias:
    """How often the longer completion is the chosen one, of all pairs."""
    gap = table["chosen_characters"].astype(np.int64) - table["rejected_characters"]
    return LengthBias(*(int(part.sum()) for part in (gap > 0, gap < 0, gap == 0)))


def cue_findings(scanned: Scan, cues: Sequence[Cue]) -> Iterator[Finding]:
    """Traits that tell the label by themselves; their rows are what would even the trait out."""
    rows = scanned.records
    table = scanned.table[rows]
    leaning = leanings(table)
    bias = length_bias(table)
    for cue in cues:
        # Length is judged as the checks of a run judge it, by all pairs.
        telling = cue.z >= CUE_Z and cue.when_differs >= CUE_WHEN_DIFFERS
        if not (bias.biased if cue.name == LENGTH else telling):
            continue
        surplus = NO_ROWS
        if cue.name in leaning:
            surplus = rows[_surplus(table, leaning[cue.name] * cue.favours)]
        evidence = {
            "held-out accuracy": cue.accuracy,
            "accuracy where it decides": cue.when_differs,
            "decides": cue.differs,
            "held-out pairs": cue.num_held_out,
        }
        severity: Severity = "warning" if cue.accuracy >= BIASED else "note"
        if cue.name == LENGTH:
            yield _length_finding(bias, surplus, evidence)
            continue
        with_it = "with" if cue.favours > 0 else "without"
        trait = f"completions {with_it} {cue.name}" if surplus.size else cue.name
        yield Finding(
            f"cue-{slug(cue.name)}", severity,
            f"{trait}: right in {cue.when_differs:.0%} of the {cue.differs:.1%} of pairs that "
            f"it decides, {cue.accuracy:.1%} of all",
            surplus, evidence, "drop the surplus to even it out, if you do not mean to teach it",
        )  # fmt: skip


def _length_finding(bias: LengthBias, surplus: Indices, evidence: dict[str, Any]) -> Finding:
    return Finding(
        "length-bias", bias.severity, bias.title, surplus,
        {**evidence, "longer chosen": bias.longer_chosen,
         "shorter chosen": bias.shorter_chosen, "equal": bias.equal,
         "longer share": bias.longer_share},
        "train with a length-normalised method (simpo, sigmoid_norm), or drop the surplus: "
        f"penchant data clean {FILE} --drop length-bias --output clean.jsonl",
    )  # fmt: skip


def _surplus(table: NDArray[Any], leaning: NDArray[np.int64]) -> NDArray[np.bool_]:
    """So many of the pairs that lean the usual way that as many remain as lean the other way.

    They are picked by the hash of their content: always the same ones, from everywhere.
    """
    usual = np.flatnonzero(leaning > 0)
    keys = combined(table["prompt"], table["chosen"], table["rejected"])[usual]
    surplus = max(0, len(usual) - int((leaning < 0).sum()))
    picked = np.zeros(len(table), np.bool_)
    picked[usual[np.argsort(keys, kind="stable")[:surplus]]] = True
    return picked


def noise_from_votes(noise: Noise) -> Finding:
    """The share of labels that the votes suggest to be wrong."""
    rate = noise.flip_probability
    return Finding(
        "label-noise", severity_of_noise(rate), noise.title, NO_ROWS,
        {"estimate": rate, "from": "votes", "votes": noise.votes, "rated": noise.num_rated,
         "error of one vote": noise.vote_error, "mean agreement": noise.mean_agreement},
        "drop split-votes or low-agreement; or train with robust or ipo",
    )  # fmt: skip


def noise_from_probe(
    scanned: Scan, rate: float | None = None
) -> tuple[Probe | None, list[Finding]]:
    """The share of flipped labels by a cross-validated probe, and the rows that are likeliest.

    Args:
        scanned: pairs.
        rate: the share, where it is known: the probe then says only which rows.
    """
    rows = np.array([row for row, _ in scanned.sample], np.int64)
    pairs = [record for _, record in scanned.sample if isinstance(record, Pair)]
    probe = probe_labels(pairs, scanned.table["prompt"][rows], rate)
    if probe is None:
        return None, []
    interval = f"{probe.low:.1%} to {probe.high:.1%}"
    known = probe.high - probe.low <= 2 * NOISY_LABELS
    title = f"{probe.flip_rate:.1%} of the labels flipped by a probe's estimate ({interval})"
    remedy = "drop those that are likelier wrong than right; or train with robust or IPO"
    if not known:
        title = f"the probe cannot tell how many labels are flipped: {interval}"
        remedy = (
            "have two people judge a hundred rows again, and set noise_rate to the share that "
            "they are the wrong way round"
        )
    elif rate is not None:
        named = counted(int((probe.right < 0.5).sum()), "label")
        title = f"{named} likelier flipped than not, where {rate:.1%} of all are said to be"
    finding = Finding(
        "label-noise", severity_of_noise(probe.flip_rate if known else 0.0), title,
        rows[probe.right < 0.5] if known else NO_ROWS,
        {"estimate": probe.flip_rate, "low": probe.low, "high": probe.high,
         "from": "probe" if rate is None else "noise_rate",
         "probe's held-out accuracy": probe.accuracy, "pairs": len(pairs)},
        remedy, sampled=not scanned.sampled_all,
    )  # fmt: skip
    return probe, [finding]


@cache
def _detector() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def languages(scanned: Scan) -> tuple[Counter[str], list[Finding]]:
    """Completions of the sample by language, `?` where it cannot be told; and pairs of two."""
    counts: Counter[str] = Counter()
    mixed: list[int] = []
    for row, record in track(scanned.sample, "languages"):
        detected = [language(joined(text)) for text in answers(record)]
        counts.update("?" if one is None else one for one in detected)
        if None not in detected and len(set(detected)) > 1:
            mixed.append(row)
    known = Counter({code: n for code, n in counts.items() if code != "?"})
    return counts, list(_language_findings(scanned, known, mixed))


def language(text: str) -> str | None:
    """The ISO 639-1 code of a text's language; None where it cannot be told."""
    text = text[:DETECTED_CHARACTERS]
    if sum(map(str.isalpha, text)) < LANGUAGE_CHARACTERS:
        return None
    code, probability = _detector().classify(text)
    return str(code) if probability >= LANGUAGE_PROBABILITY else None


def _language_findings(
    scanned: Scan, counts: Counter[str], mixed: Sequence[int]
) -> Iterator[Finding]:
    total = counts.total()
    shares = {code: n / total for code, n in counts.most_common()}
    several = {code: share for code, share in shares.items() if share >= MIN_LANGUAGE_SHARE}
    if len(several) > 1:
        shown = ", ".join(f"{code} {share:.1%}" for code, share in several.items())
        yield Finding(
            "languages", "note", f"completions in {len(several)} languages: {shown}", NO_ROWS,
            shares, "split the file by language if the model is for one of them",
        )  # fmt: skip
    if mixed:
        yield Finding(
            "mixed-languages", "warning",
            f"{counted(len(mixed), 'pair')} whose completions are in different languages",
            np.array(mixed, np.int64), {"count": len(mixed), "sampled": len(scanned.sample)},
            "drop them, unless the language is what is preferred", sampled=not scanned.sampled_all,
        )  # fmt: skip
