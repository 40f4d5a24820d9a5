"""Pairs of sampled answers: several for each prompt, scored, and the best against others."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from penchant.core.atomic import write_atomically
from penchant.core.outputs import require_writable
from penchant.core.screen import track
from penchant.data.building import Built, build
from penchant.data.building.rules import Choice, Rules
from penchant.data.prompts import Prompt, read_prompts
from penchant.data.records import DataError
from penchant.data.rows.messages import plain
from penchant.data.writing import encoded, require_new

if TYPE_CHECKING:
    from penchant.data.opening import Source

logger = logging.getLogger("penchant")


class Sample(Protocol):
    """Draws answers."""

    def __call__(self, prompts: Sequence[Prompt], n: int, seed: int) -> Sequence[Sequence[str]]:
        """`n` answers to each prompt; the seed decides alone."""


# Scores one answer to each prompt; more is better.
Score = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
# Loads what samples and scores, or refuses a prompt.
Prepare = Callable[[Sequence[Prompt]], None]


def build_from_samples(
    source: Source,
    output: str | Path,
    *,
    sample: Sample,
    score: Score,
    prepare: Prepare | None = None,
    n: int = 4,
    pairs: Choice = "best_worst",
    min_gap: float = 0.0,
    batch_size: int = 8,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Built:
    """Sample answers to prompts, score them, and pair them up; called again, it goes on.

    The answers and their scores stay beside the output, in `OUTPUT.samples.jsonl`, as rows that
    `build` reads as ratings; `OUTPUT.samples.json` says how they were made.

    Args:
        source: anything that `read_prompts` takes.
        output: a new `.jsonl`, `.jsonl.gz` or `.parquet` file.
        sample: draws the answers.
        score: scores them.
        prepare: is given all prompts that are left to answer, before the first of them is.
        n: answers to each prompt, at least 2.
        pairs, min_gap, strict: as for `build`.
        batch_size: prompts that are sampled together, and written at once.
        seed: of the samples, and of the random choice.
        about: what else decides the answers and scores, such as the model's name; a run that
            goes on must have the same.
        split, columns: as for `read_pairs`.

    Raises:
        UserError: the prompts cannot be read, `output` exists or cannot be written, samples of
            another setting are there, or no pair can be made.
    """
    target, samples = require_place(output)
    if n < 2:
        raise DataError(f"n must be at least 2 to make a pair, got {n}")
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}")
    Rules(choice=pairs, min_gap=min_gap)  # what is impossible is said before anything is sampled
    prompts_read = read_prompts(source, split=split, columns=columns, strict=strict)
    logger.info("%s", prompts_read.summary())
    settings = {
        **(about or {}), "prompts": prompts_read.fingerprint, "n": n, "batch_size": batch_size,
        "seed": seed,
    }  # fmt: skip
    done = _resume(samples, settings, batch_size, len(prompts_read.records))
    starts = range(done, len(prompts_read.records), batch_size)
    if starts and prepare is not None:
        prepare(prompts_read.records[done:])
    write_atomically(samples.with_suffix(".json"), json.dumps(settings, indent=2) + "\n")
    with samples.open("ab") as stream:
        for start in track(starts, "sampling and scoring"):
            batch = prompts_read.records[start : start + batch_size]
            stream.write(b"".join(map(encoded, _rows(batch, n, seed + start, sample, score))))
            stream.flush()
            os.fsync(stream.fileno())
    return build(
        samples, target, form="ratings", pairs=pairs, min_gap=min_gap, seed=seed, strict=strict
    )


def require_place(output: str | Path) -> tuple[Path, Path]:
    """The output and the file of its samples, where both can be written.

    Raises:
        UserError: the output exists, its name says no format, or its folder takes no file.
    """
    target = Path(output)
    require_new(target)
    samples = target.with_name(f"{target.name}.samples.jsonl")
    require_writable(samples, "output")
    return target, samples


def _rows(
    batch: Sequence[Prompt], n: int, seed: int, sample: Sample, score: Score
) -> list[dict[str, object]]:
    """Each prompt with its answers and their scores."""
    answers = sample(batch, n, seed)
    assert [len(one) for one in answers] == [n] * len(batch), "a sampler gives what it is asked for"
    repeated = [prompt for prompt in batch for _ in range(n)]
    scores = list(score(repeated, [text for texts in answers for text in texts]))
    assert len(scores) == len(repeated), "a score for each answer"
    return [
        {
            "prompt": plain(prompt.prompt),
            "completions": list(texts),
            "ratings": [_finite(one) for one in scores[n * i : n * (i + 1)]],
            "where": prompt.where,
        }
        for i, (prompt, texts) in enumerate(zip(batch, answers, strict=True))
    ]


def _finite(score: float) -> float | None:
    """A score as JSON holds it; none where a reward gave none."""
    return float(score) if math.isfinite(score) else None


def _resume(samples: Path, settings: Mapping[str, Any], batch_size: int, total: int) -> int:
    """How many prompts are done; what a kill left of a batch is cut off."""
    header = samples.with_suffix(".json")
    if not header.exists():
        if samples.exists():
            raise DataError(f"{samples} has no {header.name} beside it; move it away")
        return 0
    before = json.loads(header.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(settings))
    for name in wanted.keys() | before.keys():
        if before.get(name) != wanted.get(name):
            raise DataError(
                f"{samples} was made with {name} {before.get(name)}, not {wanted.get(name)}; "
                "go on with the same settings, or set output to another file"
            )
    if not samples.exists():
        return 0
    done = kept = position = 0
    with samples.open("rb+") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                break
            position += len(line)
            # A batch is drawn as a whole: half of one could not be continued alike.
            if number % batch_size == 0 or number == total:
                done, kept = number, position
        stream.truncate(kept)
    return done
