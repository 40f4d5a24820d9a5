"""A reward model on held-out pairs of PandaLM, by votes and by length, and on benchmarks at hand.

python bench/accuracy.py --methods reward                          the reward model, seed 0
python bench/judging.py --model runs/accuracy/reward-seed-0        on the pairs that it has not seen
python bench/judging.py --model RUN --data LLMBar/Dataset/LLMBar   on a benchmark too
python bench/judging.py --published JudgeBench/outputs/FILE        scores that JudgeBench publishes
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import records
from penchant.commands.benchmark import benchmark_each, rankings_of
from penchant.core.ranking import Ranking, Row
from penchant.data.benchmarks import read_questions
from penchant.data.split import split_by_prompt


def by_votes(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Held-out pairs, with the share of equal votes as subset, and with which answer is longer."""
    text = (records.shared_folder() / "data" / "pandalm.jsonl").read_text(encoding="utf-8")
    votes = {}
    for row in map(json.loads, text.splitlines()):
        for a, b in (("completion_a", "completion_b"), ("completion_b", "completion_a")):
            votes[row["prompt"], row[a], row[b]] = row["votes"]
    _, held_out = split_by_prompt(records.pandalm(), 0.8, seed)
    found: dict[str, list[dict[str, Any]]] = {"by votes": [], "by length": []}
    for pair in held_out:
        row = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        cast = votes[pair.prompt, pair.chosen, pair.rejected]
        agreeing = max(cast.count(side) for side in cast)
        longer = "chosen" if len(pair.chosen) > len(pair.rejected) else "rejected"
        found["by votes"].append({**row, "subset": f"{agreeing} of {len(cast)} votes"})
        found["by length"].append({**row, "subset": f"the {longer} answer is longer"})
    return found


def published(file: str) -> Ranking:
    """How the scores of a reward model that JudgeBench publishes rank its pairs."""
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    asked = []
    for question, row in zip(read_questions(file).records, rows, strict=True):
        a, b = torch.tensor(row["judgments"][0]["judgment"]["scores"]).flatten().tolist()
        asked.append((question, (a, b) if row["label"] == "A>B" else (b, a)))
    return rankings_of({file: asked}, {})[file]


def report(name: str, ranking: Ranking) -> None:
    print(f"\n{name}: total {ranking.rule}")
    for row in (*ranking.subsets, ranking.total):
        print(shown(row))


def shown(row: Row) -> str:
    accuracy, equal = row.accuracy, row.equal_length
    text = (
        f"{row.name:30} {row.num:5} {accuracy.mean:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}]"
    )
    if equal is None:
        return text
    share = equal.share
    return f"{text}  at equal lengths {share.mean:.3f} [{share.low:.3f}, {share.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a reward model of bench/accuracy.py")
    parser.add_argument("--seed", type=int, default=0, help="of the split that it was trained on")
    parser.add_argument("--data", action="append", default=[], help="a benchmark")
    parser.add_argument("--published", action="append", default=[], help="JudgeBench's own outputs")
    options = parser.parse_args()
    for file in options.published:
        report(Path(file).stem.rpartition("judge_model=")[2], published(file))
    if options.model is None:
        return
    sources: dict[str, Any] = {**by_votes(options.seed), **{one: one for one in options.data}}
    found = benchmark_each(sources, model=options.model)
    for name in sources:
        report(name, found[name].ranking)


if __name__ == "__main__":
    main()
