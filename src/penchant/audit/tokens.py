"""How long records are for a model, and what its lengths would cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from penchant.audit.finding import Finding
from penchant.audit.scan import Scan
from penchant.data.faults import MANY
from penchant.data.lengths import Sample, TokenLengths, measure_lengths
from penchant.data.records import counted


def token_lengths(
    scanned: Scan,
    model: str | Path,
    max_length: int,
    max_prompt_length: int,
    *,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Sample, TokenLengths, list[Finding]]:
    """Tokenise the sample as training would, without cutting.

    Raises:
        ModelError: the model has no tokenizer that can be used for these data.
        ConfigError: no record can be tokenised.
    """
    from penchant.models.load import load_tokenizer
    from penchant.models.locate import resolve

    tokenizer = load_tokenizer(
        resolve(str(model)), chat_template=chat_template, trust_remote_code=trust_remote_code
    )
    # Files of one name in two folders have rows of one place: here a row's place is its number.
    records = [replace(record, where=str(row)) for row, record in scanned.sample]
    sample = measure_lengths(records, tokenizer)
    lengths = sample.lengths(None, max_length, max_prompt_length)
    return sample, lengths, list(_cuts(scanned, sample, lengths))


def _cuts(scanned: Scan, sample: Sample, lengths: TokenLengths) -> Iterator[Finding]:
    rows = [int(place) for place in sample.places]
    cut = lengths.cut
    prompts, completions = sample.cut_rows(cut.max_length, cut.max_prompt_length)
    total = len(sample.rows)
    for name, flags, key, limit, longest in (
        ("prompts-cut", prompts, "max_prompt_length", cut.max_prompt_length, lengths.prompt),
        ("answers-cut", completions, "max_length", cut.max_length, lengths.total),
    ):
        num = sum(flags)
        if num:
            noun = "prompts" if name == "prompts-cut" else "completions"
            yield Finding(
                name, "warning" if num / total > MANY else "note",
                f"{counted(num, 'record')} ({num / total:.1%}) whose {noun} {key} {limit} cuts",
                np.array([row for row, flag in zip(rows, flags, strict=True) if flag], np.int64),
                {"count": num, "tokenised": total, key: limit, "99%": longest.p99,
                 "longest": longest.longest},
                f"raise {key} (99% need {longest.p99}), or drop them",
                sampled=not scanned.sampled_all,
            )  # fmt: skip
