"""Reward hacking on purpose: a reward that can be gamed, with and without a hold on the policy.

python bench/hacking.py                          free, held and adapt, five seeds each
python bench/hacking.py --kinds free --seeds 0   one run without a KL penalty
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import penchant
import records
from learning import COMMON, HEALTHY, PROMPTS, SETTINGS

ALARMS = ("reward-hacking", "collapse", "drift")
FREE = {"init_kl_coef": 0.0, "learning_rate": 1e-3, "adap_kl_ctrl": False}
KINDS: dict[str, dict[str, Any]] = {
    "free": FREE,
    "held": {},
    "adapt": {**FREE, "on_finding": "adapt"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", default="free,held,adapt")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("runs/hacking"))
    options = parser.parse_args()
    columns = ("run", "flagged at", "distinct-2 halved at", "alarms", "reward", "KL", "monitors")
    table = Table(*columns)
    for kind in options.kinds.split(","):
        for seed in options.seeds.split(","):
            row = one(kind, int(seed), options.steps, options.output)
            print(json.dumps(row), flush=True)
            table.add_row(
                row["run"], str(row["flagged"]), str(row["halved"]), ", ".join(row["alarms"]),
                f"{row['before']:.2f} to {row['after']:.2f}", f"{row['kl']:.1f}",
                f"{row['monitor_share']:.1%} of {row['seconds']:.0f} s",
            )  # fmt: skip
    Console().print(table)
    print(f"healthy KL: {HEALTHY[0]} to {HEALTHY[1]} nats per answer")


def one(kind: str, seed: int, steps: int, output: Path) -> dict[str, Any]:
    """One run: when it was flagged, when its answers had lost half their distinct 2-grams."""
    run = output / f"{kind}-{seed}"
    keys = {**COMMON, **SETTINGS["ppo"], **KINDS[kind], "max_steps": steps}
    model = str(records.shared_folder() / "models" / "stories260k")
    started = time.perf_counter()
    penchant.train(
        "ppo", model=model, data=PROMPTS[:56], eval_data=PROMPTS[56:], output=run, seed=seed, **keys
    )
    seconds = time.perf_counter() - started
    metrics = lines(run / "metrics.jsonl")
    findings = [one for one in lines(run / "findings.jsonl") if one["id"] in ALARMS]
    distinct = [(r["step"], r["monitor/distinct_2"]) for r in metrics if "monitor/seconds" in r]
    halved = [step for step, value in distinct if value < distinct[0][1] / 2]
    batches = list({r["iteration"]: r for r in metrics if "iteration" in r}.values())
    tail = batches[-max(1, len(batches) // 6) :]
    summary = json.loads((run / "summary.json").read_text())
    return {
        "run": run.name,
        "flagged": min((f["step"] for f in findings if f["id"] == "reward-hacking"), default=None),
        "halved": min(halved, default=None),
        "distinct_2": [round(value, 3) for _, value in distinct],
        "alarms": sorted({f["id"] for f in findings}),
        "actions": [(f["step"], f["action"]) for f in findings if "action" in f],
        "before": statistics.mean(r["reward/mean"] for r in batches[:2]),
        "after": statistics.mean(r["reward/mean"] for r in tail),
        "kl": statistics.mean(r["kl/sequence"] for r in tail),
        "seconds": seconds,
        "monitor_share": summary["monitor_seconds"]
        / (summary["monitor_seconds"] + summary["train_seconds"]),
    }


def lines(file: Path) -> list[dict[str, Any]]:
    """The records of a file; none where it was never written."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


if __name__ == "__main__":
    main()
