"""A whole PPO step, generation included, beside TRL 0.11.4 in an environment of its own.

python -m venv old && old/bin/pip install torch==2.13.0 trl==0.11.4 transformers==4.45.2 \\
    accelerate==0.34.2 peft==0.13.2 datasets==3.0.1 "numpy<2" "pyarrow<18" rich
python bench/ppo.py --trl_python old/bin/python
python bench/ppo.py --backbones              one backbone against four models
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

import records
from compare import demo_model
from positions import per_position
from work import machine

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trl_python", type=Path, help="Python of an environment with TRL 0.11.4")
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, as in the demo")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each, alternating")
    parser.add_argument("--batches", type=int, default=2, help="whole steps a run")
    parser.add_argument("--backbones", action="store_true", help="one backbone against four models")
    parser.add_argument("--reward", help="with --backbones: a reward model's run, a LoRA adapter")
    options = parser.parse_args()
    model = options.model or demo_model()
    settings: dict[str, Any] = {
        "model": model, "batch_size": 16, "mini_batch_size": 4, "ppo_epochs": 4,
        "max_completion_length": 64, "batches": options.batches, "learning_rate": 1e-5,
        "end_token": AutoTokenizer.from_pretrained(model).eos_token,
        "prompts": prompts(model, 16 * options.batches), "separate": False,
        "reward": options.reward,
    }  # fmt: skip
    own, old = ("ppo_penchant.py", sys.executable), ("ppo_trl.py", str(options.trl_python))
    if options.backbones:
        rivals = {"one": (*own, settings), "four": (*own, {**settings, "separate": True})}
    elif options.trl_python is None:
        raise SystemExit("--trl_python names the Python of an environment with TRL 0.11.4")
    else:
        rivals = {"penchant": (*own, settings), "trl": (*old, settings)}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in rivals}
    for _ in range(options.rounds):
        for name, (script, python, given) in rivals.items():
            found[name].append(run(script, python, given))
            print(name, json.dumps(found[name][-1]), flush=True)
    report(found, settings["batch_size"])


def prompts(model: str, count: int) -> list[list[int]]:
    """Token ids of short prompts, the same for both."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    file = records.shared_folder() / "data" / "pandalm.jsonl"
    texts = dict.fromkeys(json.loads(line)["prompt"] for line in file.read_text().splitlines())
    return [tokenizer(text)["input_ids"][:128] for text in list(texts)[:count]]


def run(script: str, python: str, settings: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.json"
        file.write_text(json.dumps(settings))
        done = subprocess.run(
            [python, str(HERE / script), str(file)], capture_output=True, text=True, check=False
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("OUTCOME ")]
    if not lines:
        raise SystemExit(f"{script} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("OUTCOME "))


def report(found: dict[str, list[dict[str, Any]]], batch_size: int) -> None:
    rates = {}
    for name, runs in found.items():
        seconds = [s for one in runs for s in one["seconds"]]
        rates[name] = batch_size / statistics.median(seconds)
        share = statistics.mean(one["generation_share"] for one in runs)
        peak = max(one["memory_peak_bytes"] for one in runs) / 2**30
        held = runs[0].get("held_bytes")
        print(
            f"{name}: {rates[name]:.3f} samples/s ({statistics.median(seconds):.1f} s a step of "
            f"{batch_size}), generation {share:.0%}, peak {peak:.2f} GiB"
            + (f", weights held {held / 2**30:.3f} GiB" if held else "")
        )
    print(machine())
    first, second = found
    peaks = [max(one["memory_peak_bytes"] for one in found[name]) for name in (first, second)]
    print(f"{first} / {second}: {rates[first] / rates[second]:.2f}x samples/s, "
          f"{peaks[0] / peaks[1]:.2f}x peak memory")  # fmt: skip
    each = [
        per_position(*([one[key] for one in found[name]] for key in ("seconds", "positions")))
        for name in found
    ]
    laid_out = [sum(found[name][0]["positions"]) for name in found]
    print(
        f"positions trained on: {laid_out[0]:,} and {laid_out[1]:,}; of the whole step "
        f"{each[0] / 1e3:.1f} and {each[1] / 1e3:.1f} us each, {each[1] / each[0]:.2f}x"
    )
    helds = [found[name][0].get("held_bytes") for name in (first, second)]
    if all(helds):
        print(f"weights held: {helds[0] / helds[1]:.2f}x")
        for key in ("loss", "reward/mean", "kl/sequence"):
            values = [found[name][0]["first"][key] for name in (first, second)]
            print(f"first step, {key}: {values[0]:.6f} and {values[1]:.6f}")


if __name__ == "__main__":
    main()
