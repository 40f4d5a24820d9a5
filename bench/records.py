"""The records that both trainers get: plain strings, the same rows in the same order."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from penchant.data.read import read_pairs
from penchant.data.records import Pair
from settings import Settings

MARKER = "\n\nAssistant:"

# Mean and deviation of the logarithm of token counts: prompt, then each completion.
LENGTHS = {
    "hh": ((4.5, 0.8), (3.6, 0.8)),
    "ultrafeedback": ((4.6, 0.9), (5.6, 0.6)),
    "tldr": ((5.8, 0.4), (3.5, 0.4)),
}


# Methods that learn from labels, and those before whose prompts TRL puts a BOS token.
LABELS = ("kto",)
WITH_BOS = ("orpo", "cpo", "simpo")


def shared_folder() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("PENCHANT_SHARED", default))


def pandalm() -> list[Pair]:
    """PandaLM's pairs, without what the votes say of them beyond the preference."""
    data = shared_folder() / "data" / "pandalm.jsonl"
    if not data.exists():
        raise SystemExit(f"needs {data}; set PENCHANT_SHARED")
    return [replace(pair, margin=None, agreement=None) for pair in read_pairs(data).records]


def load(num_pairs: int, seed: int, lengths: str | None) -> tuple[str, list[dict[str, str]]]:
    """The name of the source and `num_pairs` rows of prompt, chosen, rejected."""
    if lengths is not None:
        return f"synthetic, lengths like {lengths}", _synthetic(num_pairs, seed, lengths)
    hh = shared_folder() / "data" / "hh-harmless.jsonl.gz"
    if hh.exists():
        name, rows = "hh-harmless", _hh(hh)
    else:
        name, rows = "the sample set", _sample()
    random.Random(seed).shuffle(rows)
    return name, rows[:num_pairs]


def for_method(settings: Settings, bos: str | None) -> tuple[str, list[dict[str, Any]]]:
    """The rows of a comparison, in the layout that its method reads."""
    count = settings.steps * settings.batch_size
    name, rows = load(count, settings.seed, settings.lengths)
    if settings.method in WITH_BOS and bos:
        return name, [{**row, "prompt": bos + row["prompt"]} for row in rows]
    if settings.method not in LABELS:
        return name, rows
    labels = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    if settings.one_label:  # the good one, the bad one, and so on
        return f"{name}, one label a prompt", [labels[2 * i + i % 2] for i in range(count)]
    return f"{name}, both labels of a prompt", labels[:count]


def _hh(file: Path) -> list[dict[str, str]]:
    rows = []
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            cut = row["chosen"].rfind(MARKER) + len(MARKER)
            prompt, chosen, rejected = row["chosen"][:cut], row["chosen"][cut:], row["rejected"]
            # A leading space stays with the completion, so that no token spans the boundary;
            # over-long rows are left out because the two trainers cut differently.
            usable = rejected.startswith(prompt) and rejected[cut:] != chosen
            usable = usable and bool(chosen.strip()) and bool(rejected[cut:].strip())
            if usable and max(len(row["chosen"]), len(rejected)) < 3000:
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected[cut:]})
    return rows


def _sample() -> list[dict[str, str]]:
    text = (files("penchant.data") / "sample" / "everyday.jsonl").read_text(encoding="utf-8")
    rows = []
    for line in text.splitlines():
        row = json.loads(line)
        flat = "".join(f"\n\n{m['role'].title()}: {m['content']}" for m in row["prompt"])
        chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
        if chosen != rejected and rejected and len(flat + rejected) < 3000:
            rows.append(
                {"prompt": flat + MARKER, "chosen": " " + chosen, "rejected": " " + rejected}
            )
    return rows


def _synthetic(num_pairs: int, seed: int, lengths: str) -> list[dict[str, str]]:
    generator = random.Random(seed)
    words = sorted({w for row in _sample() for w in row["rejected"].split() if w.isalpha()})

    def text(mean: float, deviation: float) -> str:
        count = min(900, max(4, round(math.exp(generator.gauss(mean, deviation)))))
        return " " + " ".join(generator.choices(words, k=count))

    prompt, completion = LENGTHS[lengths]
    return [
        {"prompt": text(*prompt), "chosen": text(*completion), "rejected": text(*completion)}
        for _ in range(num_pairs)
    ]
