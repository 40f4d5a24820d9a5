"""Run directories as training writes them, made of literals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIG = {
    "method": "dpo", "model": "owner/small", "data": "pairs.jsonl", "output": "run", "beta": 0.3,
    "learning_rate": None, "data_fingerprints": ["abc"], "num_processes": 1,
    "versions": {"penchant": "0.1.0"},
}  # fmt: skip
SUMMARY = {
    "steps": 100, "train_seconds": 95.0, "tokens_per_second": 1234.5, "memory_peak_bytes": 2**30,
    "evaluation_before": {"accuracy": 0.5}, "evaluation_after": {"accuracy": 0.9},
    "tokenising": {"training": {"noun": "pairs", "num_examples": 24, "dropped": {"empty": 2}}},
}  # fmt: skip
HEALTHY = [
    {"step": 0, "eval/reward/accuracy": 0.5, "monitor/kl_sequence": 0.0, "monitor/reward": 0.1},
    *({"step": n, "loss": 0.7 - n / 200, "reward/margin": n / 50} for n in range(1, 101)),
    {"step": 100, "eval/reward/accuracy": 0.9, "monitor/kl_sequence": 4.0, "monitor/reward": 0.8},
]

WriteRun = Callable[..., Path]


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Return a function that writes a run directory; None leaves a file out."""

    def write(
        name: str = "run",
        *,
        config: Mapping[str, Any] | None = CONFIG,
        summary: Mapping[str, Any] | None = SUMMARY,
        **files: Iterable[Mapping[str, Any]] | None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        if config is not None:
            (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(summary))
        for file, records in {"metrics": HEALTHY, **files}.items():
            if records is not None:
                (folder / f"{file}.jsonl").write_text(_lines(records), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def long_run(write_run: WriteRun) -> Path:
    """Return a PPO run of 2,000 steps with every curve, 20 monitored prompts and 50 findings."""
    steps = range(1, 2001)
    metrics: list[dict[str, Any]] = []
    for n in steps:
        noise = math.sin(n * 12.9898) * 0.3
        metrics.append(
            {
                "step": n, "epoch": n / 2000, "loss": 0.7 / n**0.3 + noise,
                "reward/mean": n / 2000 + noise, "kl/sequence": 8 * n / 2000 + noise,
                "completion/length": 40 + 10 * noise, "entropy": 2 - n / 2000 + noise,
                "kl": 0.1 + noise / 9, "grad_norm": 1 + noise, "learning_rate": 1e-5,
                "tokens": 900.0, "tokens_per_second": 1000 + 99 * noise, "memory_peak_bytes": 2**31,
            }
        )  # fmt: skip
        if n % 100 == 0:
            monitored = ("kl_sequence", "reward", "distinct_1", "distinct_2", "distinct_3",
                         "self_bleu", "same_opening", "repetition", "length", "win_rate",
                         "entropy")  # fmt: skip
            metrics.append({"step": n, **{f"monitor/{name}": n / 2000 for name in monitored}})
    answers = [
        {"step": step, "prompt": f"Prompt {n}?", "answer": f"word{step % 7} of {n} " * 60,
         "num_tokens": 200, "ended": True, "reward": 0.5, "kl": 3.0}
        for step in range(0, 2001, 100) for n in range(20)
    ]  # fmt: skip
    findings = [
        {"step": 40 * n, "id": "clip-fraction-high", "severity": "warning", "what": "high " * 20,
         "remedy": "lower learning_rate", "evidence": {"clip": 0.4}, "docs": ""}
        for n in range(1, 51)
    ]  # fmt: skip
    config = {**CONFIG, "method": "ppo"}
    return write_run("long", config=config, metrics=metrics, monitor=answers, findings=findings)
