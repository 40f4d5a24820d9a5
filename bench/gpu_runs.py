"""Whole runs of the trial on a GPU: methods, beside TRL, 4-bit bases, sampling, PPO and GRPO.

python bench/gpu_runs.py SETTINGS     started by bench/gpu.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import compare
import penchant
import records
import work
from gpu_rows import Part, attempt, release, row
from ppo_penchant import share_of_even_ids
from settings import Outcome, Settings

STEPS = 3
# What a method is tried with on Gemma 3 and Qwen3.5, whose layers differ: one of each kind.
KINDS = ("dpo", "kto", "orpo", "reward", "ppo", "grpo")


def main() -> None:
    part = Part.from_argument()
    Path(part.folder).mkdir(parents=True, exist_ok=True)
    {"methods": methods, "losses": losses, "trl": trl, "qlora": qlora, "sampling": sampling,
     "online": online}[part.part](part)  # fmt: skip


# Every method, three steps, beside the CPU


def planned(part: Part) -> list[tuple[str, str, str]]:
    """Model, method and precision of each run, the most telling first."""
    size = "tiny" if part.tiny else "100m"
    first, others = f"llama-{size}", (f"gemma3-{size}", f"qwen3_5-{size}")
    every = [(first, name) for name in penchant.METHODS]
    some = [(model, name) for model in others for name in (KINDS[:1] if part.tiny else KINDS)]
    precisions = ("bf16", "fp32") if part.device == "cuda" else ("fp32",)
    return [(*one, p) for group in (every, some) for p in precisions for one in group]


def methods(part: Part) -> None:
    """Losses on the device beside those of the CPU in fp32, which a second process computes."""
    for name in dict.fromkeys(model for model, _, _ in planned(part)):
        part.model(name)  # before two processes need it
    process, known = None, Path(part.folder) / "losses.jsonl"
    kept = Path(part.folder) / "found.jsonl"  # an earlier process may have found some
    if not part.done:
        known.unlink(missing_ok=True)
        kept.unlink(missing_ok=True)
    if part.device == "cuda" and not part.done:
        settings = {**vars_of(part), "part": "losses", "device": "cpu"}
        command = [sys.executable, __file__, json.dumps(settings)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    before = kept.read_text("utf-8").splitlines() if kept.exists() else []
    found: dict[tuple[str, ...], dict[str, Any]] = {
        tuple(one["run"]): one["figures"] for one in map(json.loads, before)
    }
    for model, method, precision in planned(part):
        name = f"{method}, {model}, {precision}"
        if name in part.done or (model, method, precision) in found:
            continue
        if part.left() < (5 if part.tiny else 40):
            row(name, left_out="no time is left")
            continue
        with attempt(name):
            figures = few_steps(part, model, method, precision)
            found[model, method, precision] = figures
            row(name, **figures)
            with kept.open("a", encoding="utf-8") as stream:
                one = {"run": [model, method, precision], "figures": figures}
                stream.write(json.dumps(one) + "\n")
    if process is not None:
        try:
            process.wait(max(1.0, part.left() - 5))
        except subprocess.TimeoutExpired:
            process.kill()
    lines = known.read_text("utf-8").splitlines() if known.exists() else []
    expected = {(one["model"], one["method"]): one["losses"] for one in map(json.loads, lines)}
    differences = {}
    for (model, method, precision), figures in found.items():
        theirs = expected.get((model, method))
        if theirs is not None:
            pairs = zip(figures["losses"], theirs, strict=False)
            largest_of_run = max(abs(a - b) for a, b in pairs)
            differences[f"{method}, {model}, {precision}"] = largest_of_run
    if differences:
        row("largest differences of a loss from the CPU's in fp32", **differences)


def vars_of(part: Part) -> dict[str, Any]:
    return {name: getattr(part, name) for name in ("part", "device", "size", "seconds", "folder")}


def losses(part: Part) -> None:
    """On the CPU in fp32: written down one by one, for `methods` to read."""
    file = Path(part.folder) / "losses.jsonl"
    for model, method, _ in planned(part):
        with attempt(method):
            found = few_steps(part, model, method, "fp32")
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"model": model, "method": method, **found}) + "\n")


def few_steps(part: Part, model: str, method: str, precision: str) -> dict[str, Any]:
    """Losses and gradients of three steps of a run."""
    spec = penchant.METHODS[method]
    keys: dict[str, Any] = {"precision": precision, "per_device_train_batch_size": 2}
    if spec.samples:
        keys |= {"reward": share_of_even_ids, "batch_size": 4, "max_completion_length": 16}
        if "num_generations" in spec.options.model_fields:
            keys |= {"num_generations": 2}
    elif spec.data == "labels":
        keys |= {"unpair": True}
    if "teacher_model" in spec.options.model_fields:
        keys |= {"teacher_model": str(part.model(model))}
    lines, _ = run(part, method, model, steps=STEPS, max_length=256, **keys)
    return {
        "losses": [line["loss"] for line in lines],
        "grad_norms": [line["grad_norm"] for line in lines],
    }


def run(
    part: Part, method: str, model: str, *, steps: int, lengths: str = "hh", **keys: Any
) -> tuple[list[dict[str, Any]], Any]:
    """Train on synthetic records; the logged steps, and the result."""
    _, rows = records.load(max(8, 8 * steps), 0, lengths)
    with tempfile.TemporaryDirectory() as folder:
        own = {
            "model": str(part.model(model)), "data": rows, "output": Path(folder) / "run",
            "max_steps": steps, "lora_r": 16, "lora_dropout": 0.0, "warmup_ratio": 0.0,
            "lr_scheduler_type": "constant", "learning_rate": 1e-5, "monitor_prompts": 0,
            "save_steps": 10_000, "gradient_accumulation_steps": 1,
        }  # fmt: skip
        result = penchant.train(method, **{**own, **keys})
        lines = (own["output"] / "metrics.jsonl").read_text("utf-8").splitlines()
    return [one for one in map(json.loads, lines) if "loss" in one], result


# DPO beside TRL at its best


def trl(part: Part) -> None:
    if importlib.util.find_spec("trl") is None:
        row("DPO beside TRL", left_out="trl is not installed")
        return
    precision = "bf16" if part.device == "cuda" else "fp32"
    rate = work.matmul_rate(precision)
    row("matrix products", teraflops=rate / 1e12, precision=precision)
    plan = [("tiny", "lora", "hh")]
    if not part.tiny:
        plan = [("8b", "lora", "hh"), ("8b", "lora", "ultrafeedback"), ("1b", "lora", "hh"),
                ("1b", "full", "hh"), ("1b", "lora", "tldr"), ("1b", "lora", "ultrafeedback"),
                ("8b", "lora", "tldr")]  # fmt: skip
    for size, mode, lengths in plan:
        name = f"DPO {mode}, {size}, lengths like {lengths}"
        if name in part.done:
            continue
        if part.left() < (0 if part.tiny else 50):
            row(name, left_out="no time is left")
            continue
        with attempt(name):
            settings = Settings(
                model=str(part.model(f"llama-{size}")), method="dpo", mode=mode,
                steps=2 if part.tiny else 10, batch_size=2 if part.tiny else 8, max_length=1024,
                seed=0, precision=precision, lengths=lengths, attention="auto",
            )  # fmt: skip
            beside_trl(name, settings, rate)
    if not part.tiny:
        row("DPO full, 8b", left_out="fp32 weights and moments of 8B take 128 GB")


def beside_trl(name: str, settings: Settings, rate: float) -> None:
    """One run of each, in processes of their own."""
    skipped = min(3, settings.steps - 1)  # kernels compile and are chosen in the first steps
    outcomes = {trainer: compare.run(trainer, settings) for trainer in compare.TRAINERS}
    _, rows = records.for_method(settings, None)
    rows = rows[skipped * settings.batch_size :]
    flops = work.step_flops(settings.model, rows, settings.mode)
    figures: dict[str, Any] = {}
    for (trainer, outcome), work_done in zip(outcomes.items(), flops, strict=True):
        seconds = sum(outcome.seconds[skipped:])
        figures |= {
            f"{trainer}_pairs_per_second": len(rows) / seconds,
            f"{trainer}_peak_gib": outcome.memory_peak_bytes / 2**30,
            f"{trainer}_share_of_matrix_rate": work_done / seconds / rate,
        }
    own, theirs = outcomes["penchant"], outcomes["trl"]
    figures["times_trl"] = figures["penchant_pairs_per_second"] / figures["trl_pairs_per_second"]
    figures["difference_in_loss"] = largest(own, theirs)
    row(name, **figures)


def largest(one: Outcome, other: Outcome) -> float:
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


# A base in 4 bits


def qlora(part: Part) -> None:
    """The least memory first, then the pace of a usual batch."""
    model, steps = ("llama-tiny", 2) if part.tiny else ("llama-8b", 8)
    plan = [(1, "ultrafeedback", "on"), (4, "hh", "auto"), (4, "ultrafeedback", "auto")]
    for size, lengths, checkpointing in plan:
        size = 1 if part.tiny else size
        recomputed = ", recomputed" if checkpointing == "on" else ""
        name = f"QLoRA, {model}, {size} pairs like {lengths}{recomputed}"
        if name in part.done or (not part.tiny and part.left() < 25):
            continue
        with attempt(name):
            lines, result = run(
                part, "dpo", model, steps=steps, lengths=lengths, quantization="4bit",
                per_device_train_batch_size=size, gradient_checkpointing=checkpointing,
                max_length=1024, precision="auto",
            )  # fmt: skip
            pace = [size * one["tokens_per_second"] / one["tokens"] for one in lines[1:]]
            row(
                name,
                pairs_per_second=median(pace),
                peak_gib=result.memory_peak_bytes / 2**30,
                largest_step=max(one["tokens"] for one in lines),
            )


# Sampling, and steps of methods that sample


def sampling(part: Part) -> None:
    """Tokens a second of each engine, over whole batches of answers."""
    # On a CPU a cache of a fixed size runs without a graph.
    engines = ("static", "cached", "continuous", "vllm", "auto")
    for engine in engines if part.device == "cuda" else engines[:2]:
        name = f"sampling {engine}"
        if name in part.done:
            continue
        if engine == "vllm" and importlib.util.find_spec("vllm") is None:
            row(name, left_out="vLLM is not installed")
            continue
        with attempt(name):
            lines, _ = sampled(part, "grpo", generation=engine)
            seconds = [one["seconds/generation"] for one in lines[1:]]
            tokens = [one["rollouts"] * one["completion/length"] for one in lines[1:]]
            apart = "logprob/sampling_difference"  # where the policy has scored the answers again
            row(
                name,
                tokens_per_second=median(t / s for t, s in zip(tokens, seconds, strict=True)),
                sampling_difference=max(one[apart] for one in lines if apart in one),
            )


def online(part: Part) -> None:
    """Seconds of a whole step of PPO and GRPO, and where they go."""
    for method in ("ppo", "grpo"):
        if method in part.done:
            continue
        with attempt(method):
            lines, result = sampled(part, method, generation="auto")
            timed = lines[1:]
            row(
                method,
                **{
                    f"seconds_of_{name}": median(one[f"seconds/{name}"] for one in timed)
                    for name in ("generation", "reward", "scoring")
                },
                seconds_of_a_step=median(one["tokens"] / one["tokens_per_second"] for one in timed),
                peak_gib=result.memory_peak_bytes / 2**30,
            )


def sampled(part: Part, method: str, **keys: Any) -> tuple[list[dict[str, Any]], Any]:
    """A run in which every step has answers of its own."""
    model, answers, length = ("llama-tiny", 4, 8) if part.tiny else ("llama-1b", 64, 256)
    mini = answers if part.tiny else 16
    release()
    more = {"num_generations": 4} if method == "grpo" else {"ppo_epochs": 1}
    return run(
        part, method, model, steps=3, lengths="hh",
        reward=share_of_even_ids, batch_size=answers, per_device_train_batch_size=mini,
        gradient_accumulation_steps=answers // mini, max_completion_length=length, max_length=1024,
        generation_batch_size=answers, precision="auto", **more, **keys,
    )  # fmt: skip


if __name__ == "__main__":
    main()
