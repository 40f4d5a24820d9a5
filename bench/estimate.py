"""Memory and time as they are predicted before a run, and as the run then takes them.

OMP_NUM_THREADS=1 python bench/estimate.py                         SmolLM2-135M, every case
OMP_NUM_THREADS=1 python bench/estimate.py --cases lora-128,ppo     some of them

Each case is two processes: one prepares the run and predicts, the other trains.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LENGTHS = (64, 128, 256)
COMMON: dict[str, Any] = {
    "max_steps": 8,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "eval_samples": 0,
    "monitor_prompts": 0,
    "warmup_ratio": 0.0,
}
SAMPLING: dict[str, Any] = {
    "batch_size": 4,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 24,
    "length": 64,
    "max_length": 128,
}


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for length in LENGTHS:
        for name, rank in (("lora", 16), ("full", 0)):
            for checkpointing in ("off", "on"):
                label = f"{name}-{length}" + ("-checkpointing" if checkpointing == "on" else "")
                keys = {"lora_r": rank, "max_length": length}
                if rank == 0:
                    keys["reference"] = "copy"
                found[label] = "dpo", {**keys, "gradient_checkpointing": checkpointing}
    found["full-64-batch-2"] = (
        "dpo",
        {
            "lora_r": 0,
            "max_length": 64,
            "reference": "cache",
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
        },
    )
    for kind in ("4bit", "8bit"):
        found[f"lora-128-{kind}"] = "dpo", {"lora_r": 16, "max_length": 128, "quantization": kind}
    whole: dict[str, Any] = {"lora_r": 0, "max_length": 64, "reference": "cache"}
    for optim in ("adamw_8bit", "adafactor", "muon", "sgd"):
        rate = {"learning_rate": 1e-3} if optim == "sgd" else {}
        found[f"full-64-{optim}"] = "dpo", {**whole, "optim": optim, **rate}
    half = {"dtype": "bf16", "precision": "bf16"}
    found["full-64-bf16"] = "dpo", {**whole, **half}
    found["full-64-bf16-adamw_8bit"] = "dpo", {**whole, **half, "optim": "adamw_8bit"}
    found["lora-128-bf16"] = "dpo", {"lora_r": 16, "max_length": 128, **half}
    # On a model with experts: --model FOLDER of one, such as bench/models.py makes.
    experts = "mlp.experts.gate_up_proj,mlp.experts.down_proj"
    found["lora-128-experts"] = (
        "dpo",
        {"lora_r": 16, "max_length": 128, "lora_dropout": 0.0, "lora_target_parameters": experts},
    )
    found["simpo-128"] = "simpo", {"lora_r": 16, "max_length": 128}
    found["kto-128"] = (
        "kto",
        {"lora_r": 16, "max_length": 128, "unpair": True, "per_device_train_batch_size": 2},
    )
    found["ppo"] = "ppo", {"lora_r": 16, **SAMPLING}
    found["ppo-full"] = "ppo", {"lora_r": 0, "reference": "copy", **SAMPLING}
    found["grpo"] = "grpo", {"lora_r": 16, "num_generations": 4, **SAMPLING}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    usual = [name for name in cases() if not name.endswith("-experts")]
    parser.add_argument("--cases", default=",".join(usual))
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, as in the demo")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    from penchant.commands.demo import demo_model

    model = options.model or demo_model()
    print(f"{'case':<24}{'GiB':>7}{'found':>7}{'ratio':>7}{'s':>8}{'found':>8}{'ratio':>7}  parts")
    for name in options.cases.split(","):
        method, keys = cases()[name]
        told = start("predict", method, model, keys)
        found = start("measure", method, model, keys)
        memory = told["peak"] / found["peak"]
        seconds = told["seconds"] / found["seconds"]
        parts = " ".join(f"{k} {v / 1e6:.0f}" for k, v in told["parts"].items() if v >= 5e5)
        print(
            f"{name:<24}{told['peak'] / 2**30:>7.2f}{found['peak'] / 2**30:>7.2f}{memory:>7.2f}"
            f"{told['seconds']:>8.1f}{found['seconds']:>8.1f}{seconds:>7.2f}  {parts}",
            flush=True,
        )
        if told["times"]:
            print(f"{'':<24}  {told['times']}", flush=True)


def start(what: str, method: str, model: str, keys: dict[str, Any]) -> dict[str, Any]:
    job = json.dumps({"what": what, "method": method, "model": model, "keys": keys})
    done = subprocess.run(
        [sys.executable, __file__, "--child", job], capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith("FOUND "):
            return dict(json.loads(line.removeprefix("FOUND ")))
    raise SystemExit(f"{what} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def child(job: dict[str, Any]) -> None:
    import penchant

    method, keys = job["method"], {**COMMON, **job["keys"]}
    length = keys.pop("length", keys["max_length"])
    samples = penchant.METHODS[method].samples
    rows = records(length, samples=samples)
    with tempfile.TemporaryDirectory() as folder:
        keys |= {"model": job["model"], "output": str(Path(folder) / "run")}
        keys["cache_dir"] = str(Path(folder) / "cache")
        if job["what"] == "measure":
            more = {"reward": share_of_letters} if samples else {}
            result = penchant.train(method, data=rows, **keys, **more)
            found: dict[str, Any] = {
                "peak": result.memory_peak_bytes,
                "seconds": result.train_seconds,
            }
        else:
            found = predict(method, rows, keys, samples=samples)
    print("FOUND " + json.dumps(found), flush=True)


def predict(
    method: str, rows: list[dict[str, str]], keys: dict[str, Any], *, samples: bool
) -> dict[str, Any]:
    from penchant.config.keys import load_config
    from penchant.guards.estimate.estimate import estimate_run
    from penchant.training.accelerator import make_accelerator
    from penchant.training.inputs import read_inputs, read_run_data
    from penchant.training.prepare import prepare

    more = {"reward": ["length:20"]} if samples else {}
    config = load_config(method, {"data": "<list>", **keys, **more})
    accelerator = make_accelerator(config.precision)
    rewards = [share_of_letters] if samples else None
    inputs = read_inputs(config, read_run_data(config, rows, None), rewards=rewards)
    setup = prepare(config, accelerator, inputs)
    found = estimate_run(config, setup, accelerator)
    return {
        "peak": found.peak_bytes,
        "seconds": found.seconds,
        "parts": dict(found.parts),
        "times": {name: round(seconds, 1) for name, seconds in found.times.items()},
    }


def records(length: int, *, samples: bool) -> list[dict[str, str]]:
    """Pairs, or prompts, whose tokens come near to a limit of `length`."""
    generator = random.Random(0)
    words = ("the", "way", "people", "talk", "about", "small", "things", "every", "day", "is")

    def text(share: float) -> str:
        count = max(2, round(share * length * generator.uniform(0.6, 1.0)))
        return " " + " ".join(generator.choices(words, k=count))

    if samples:
        return [{"prompt": text(0.5)} for _ in range(8)]
    return [{"prompt": text(0.45), "chosen": text(0.45), "rejected": text(0.45)} for _ in range(8)]


def share_of_letters(completions: list[str], **_: Any) -> list[float]:
    return [sum(c.isalpha() for c in text) / (len(text) + 1) for text in completions]


if __name__ == "__main__":
    main()
