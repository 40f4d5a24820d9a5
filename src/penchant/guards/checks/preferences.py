"""Rules over the records: noise, ties, bias, held-out data, and how many there are."""

from __future__ import annotations

from collections.abc import Iterator

from penchant.core.findings import Finding, note, warning
from penchant.data.faults import FAULTS, Count, fault_of
from penchant.data.quality import FEW
from penchant.data.records import counted
from penchant.guards.checks.snapshot import Snapshot


def unread(run: Snapshot) -> Iterator[Finding]:
    """Rows without a preference, and rows that could not be read: reading has left them out."""
    data = run.data
    total = data.num_train + data.num_held_out + data.num_ties + data.num_refused
    yield from FAULTS["ties"].found(Count(data.num_ties, total, "tie"))
    yield from FAULTS["refused-rows"].found(Count(data.num_refused, total, "row", data.refused))


def faults(run: Snapshot) -> Iterator[Finding]:
    """What `penchant data inspect` finds in the same records, under the same ids."""
    for name, count in run.data.faults.items():
        yield from fault_of(name, count.noun).found(count)


def label_noise(run: Snapshot) -> Iterator[Finding]:
    """Labels that votes say are often wrong, in a loss that takes them for right."""
    noise = run.data.noise
    if (
        noise is None
        or not (noise.told and noise.num_split)
        or getattr(run.options, "label_smoothing", None)
    ):
        return
    from penchant.data.noise import severity_of_noise

    yield Finding(
        "label-noise",
        severity_of_noise(noise.flip_probability),
        noise.title,
        "drop doubtful pairs, set label_smoothing to that share, or use ipo or robust",
        {"split_share": noise.split_share, "flip_probability": noise.flip_probability},
    )


def length_bias(run: Snapshot) -> Iterator[Finding]:
    """Length tells the label: the policy will learn length."""
    length = run.data.length
    if length is None or not length.biased:
        return
    yield Finding(
        "length-bias",
        length.severity,
        length.title,
        "use simpo or sigmoid_norm, set ld_alpha, or balance the data",
        {"longer_share": length.longer_share, "accuracy": length.accuracy},
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


RULES = (
    unread,
    faults,
    label_noise,
    length_bias,
    held_out,
    size,
)
