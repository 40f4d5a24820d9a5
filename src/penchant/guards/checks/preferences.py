"""Rules over the records: noise, ties, bias, held-out data, and how many there are."""

from __future__ import annotations

from collections.abc import Iterator

from penchant.core.findings import Finding, note, warning
from penchant.data.quality import FEW, MANY_CONTRADICTED
from penchant.data.records import counted
from penchant.guards.checks.shares import Share
from penchant.guards.checks.snapshot import Snapshot

FEW_SPOIL = 0.01  # share of records from which a fault that teaches the wrong thing is a warning
MANY_NEAR = 0.2
DOUBTFUL = 0.6  # share of the votes for a preference, below which it is ambiguous
NOISY_LABELS = 0.1  # estimated share of wrong labels from which a loss should know of them


def ties(run: Snapshot) -> Iterator[Finding]:
    """Pairs without a preference: left out while reading, or still there."""
    data = run.data
    yield from Share("pair", data.num_same, data.num_train).has(
        "white-space",
        "whose answers differ in white space or case only: ties that are still trained on",
        "drop them: penchant data clean --drop white-space",
        many=FEW_SPOIL,
    )
    if data.num_ties:
        yield note(
            "ties",
            f"{counted(data.num_ties, 'tie')} left out while reading: they hold no preference",
            "nothing to do",
            {"num_ties": data.num_ties},
        )


def ambiguous(run: Snapshot) -> Iterator[Finding]:
    """Pairs that people did not agree on."""
    yield from Share("pair", run.data.num_doubtful, run.data.num_train).has(
        "low-agreement",
        f"with less than {DOUBTFUL:.0%} of the votes for the chosen answer",
        "drop them: penchant data clean --drop low-agreement; or set label_smoothing, or a higher "
        "beta",
        many=0,
    )
    yield from Share("pair", run.data.num_zero_margin, run.data.num_train).has(
        "zero-margin",
        "with a margin of 0, which are ties",
        "drop them: penchant data clean --drop zero-margin",
        many=0,
    )


def repeats(run: Snapshot) -> Iterator[Finding]:
    """Records that stand there twice, word for word."""
    yield from Share("record", run.data.num_repeated, run.data.num_train).has(
        "duplicates",
        "repeat an earlier one",
        "drop them: penchant data clean --drop duplicates",
        many=0,
    )


def contradictions(run: Snapshot) -> Iterator[Finding]:
    """Pairs that cannot all hold, both ways round or in a circle; completions judged both ways."""
    labels = run.config.spec.data == "labels"
    yield from Share(
        "label" if labels else "pair", run.data.num_contradicted, run.data.num_train
    ).has(
        "contradictions",
        "are of completions that were judged both ways"
        if labels
        else "also occur the other way round",
        "drop them: penchant data clean --drop contradictions",
        many=MANY_CONTRADICTED,
    )
    yield from Share("pair", run.data.num_cyclic, run.data.num_train).has(
        "cycles",
        "lie in cycles: A over B, B over C, C over A",
        "drop them: penchant data clean --drop cycles",
        many=MANY_CONTRADICTED,
    )


def label_noise(run: Snapshot) -> Iterator[Finding]:
    """Labels that votes say are often wrong, in a loss that takes them for right."""
    noise = run.data.noise
    if noise is None or run.data.signal not in ("noisy", "coin toss"):
        return
    toss = run.data.signal == "coin toss"
    smoothed = bool(getattr(run.options, "label_smoothing", 0))
    if not toss and (smoothed or noise.flip_probability < NOISY_LABELS):
        return
    yield Finding(
        "label-noise",
        "warning" if toss else "note",
        f"{noise.split_share:.0%} of the rated pairs are not unanimous; about "
        f"{noise.flip_probability:.0%} of the labels are estimated to be wrong",
        "drop doubtful pairs, set label_smoothing to that share, or use ipo or robust",
        {"split_share": noise.split_share, "flip_probability": noise.flip_probability},
    )


def length_bias(run: Snapshot) -> Iterator[Finding]:
    """Length tells the label: the policy will learn length."""
    length = run.data.length
    if length is None or not length.biased:
        return
    longer = "longer" if length.longer_share >= 0.5 else "shorter"
    yield Finding(
        "length-bias",
        "warning" if length.strongly_biased else "note",
        f"the {longer} answer is the chosen one in "
        f"{max(length.longer_share, 1 - length.longer_share):.0%} of the pairs: length alone is "
        f"right in {length.accuracy:.0%}, and is what will be learned",
        "use simpo or sigmoid_norm, set ld_alpha, or balance the data",
        {"longer_share": length.longer_share, "accuracy": length.accuracy},
    )


def shared_prompts(run: Snapshot) -> Iterator[Finding]:
    """Held-out records that are known from training."""
    data = run.data
    yield from Share("held-out record", data.num_shared, data.num_held_out).has(
        "shared-prompts",
        "have a prompt that is trained on: accuracy will flatter",
        "divide again with penchant data split, or set train_fraction, which keeps each prompt on "
        "one side",
        many=0,
    )
    yield from Share("held-out record", data.num_near or 0, data.num_held_out).has(
        "near-prompts",
        "have nearly a prompt that is trained on",
        "penchant data split --similarity 0.7 keeps near-duplicates on one side",
        many=MANY_NEAR,
    )


def held_out(run: Snapshot) -> Iterator[Finding]:
    """Nothing to measure on."""
    if not run.data.num_held_out:
        yield note(
            "no-held-out",
            "no data are held out: nothing will say whether the run helped, or over-fitted",
            "--train_fraction 0.9 holds out a tenth, whole prompts at a time; or set eval_data",
        )


def size(run: Snapshot) -> Iterator[Finding]:
    """Too little to learn from."""
    data = run.data
    if data.num_train < FEW:
        yield note(
            "few-records",
            f"only {counted(data.num_train, 'training record')}: too few to learn more from than "
            "their wording",
            f"collect at least {FEW}, better 1,000",
            {"num_train": data.num_train},
        )
    if data.num_prompts == 1 < data.num_train:
        yield warning(
            "one-prompt",
            f"all {data.num_train} records share one prompt: the policy learns to answer that one",
            "add records with other prompts",
            {"num_train": data.num_train},
        )


def refused(run: Snapshot) -> Iterator[Finding]:
    """Rows that could not be read."""
    data = run.data
    num_rows = data.num_refused + data.num_train + data.num_held_out
    yield from Share("row", data.num_refused, num_rows).has(
        "refused-rows",
        "were refused while reading",
        "see the reasons above; strict makes them an error",
        many=FEW_SPOIL,
    )


RULES = (
    ties,
    ambiguous,
    repeats,
    contradictions,
    label_noise,
    length_bias,
    shared_prompts,
    held_out,
    size,
    refused,
)
