"""Penchant beside TRL: the same model, records and settings, in alternating processes.

python bench/compare.py                        on a CPU: SmolLM2-135M, DPO, LoRA and full, fp32
python bench/compare.py --methods kto,orpo,simpo,cpo,reward --modes lora
python bench/compare.py --llama 1b --lengths hh --precision bf16 --modes lora     on CUDA
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch

import records
import work
from methods import COUNTERPARTS
from positions import per_position
from settings import Outcome, Settings

# Kernels compile and are chosen in the first steps on CUDA.
SKIPPED = 3 if torch.cuda.is_available() else 0
HERE = Path(__file__).resolve().parent
TRAINERS = ("penchant", "trl")

LLAMA = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or demo_model()
        if options.llama:
            model = random_llama(options.llama, model, Path(folder))
        rate = work.matmul_rate(options.precision)
        print(work.machine())
        print(f"matrix products on this machine: {rate / 1e9:.0f} GFLOP/s ({options.precision})")
        for method, mode in product(options.methods.split(","), options.modes.split(",")):
            settings = Settings(
                model=scored_model(model, Path(folder)) if method == "reward" else model,
                method=method, mode=mode, one_label=options.one_label,
                steps=options.steps, batch_size=options.batch_size,
                max_length=options.max_length, seed=options.seed, precision=options.precision,
                lengths=options.lengths, attention=options.attention,
            )  # fmt: skip
            outcomes: dict[str, list[Outcome]] = {name: [] for name in TRAINERS}
            for _ in range(options.rounds):
                for name in TRAINERS:
                    outcomes[name].append(run(name, settings))
            report(settings, outcomes, rate)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", help="folder of a model (default: SmolLM2-135M-Instruct, as in the demo)")
    add("--llama", choices=LLAMA, help="random weights of a Llama 3 configuration instead")
    add("--methods", default="dpo", help=f"of {', '.join(COUNTERPARTS)}")
    add("--modes", default="lora,full")
    add("--one_label", action="store_true", help="methods for labels: distinct prompts in a batch")
    add("--steps", type=int, default=8)
    add("--rounds", type=int, default=2, help="runs of each trainer, alternating")
    add("--batch_size", type=int, default=4)
    add("--max_length", type=int, default=1024)
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--lengths", choices=records.LENGTHS, help="synthetic records with such lengths")
    add("--attention", default="auto", help="Penchant's kernel: auto, sdpa, flex")
    add("--seed", type=int, default=0)
    return parser.parse_args()


def demo_model() -> str:
    from penchant.commands.demo import demo_model

    return demo_model()


def scored_model(name: str, folder: Path) -> str:
    """The same model with one random score head, so that both trainers start from it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    target = folder / "scored"
    if not target.exists():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return str(target)


def random_llama(size: str, tokenizer_of: str, folder: Path) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    config = LlamaConfig(
        **LLAMA[size], num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=size == "1b",
    )  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / size)
    tokenizer.save_pretrained(folder / size)
    return str(folder / size)


def run(name: str, settings: Settings) -> Outcome:
    command = [sys.executable, str(HERE / f"run_{name}.py"), settings.to_json()]
    # Penchant sets this for its own process; TRL runs as it comes.
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    for line in done.stdout.splitlines():
        if line.startswith("OUTCOME "):
            return Outcome(**json.loads(line.removeprefix("OUTCOME ")))
    raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")


def timed(outcome: Outcome) -> float:
    """Seconds of the steps that count."""
    return sum(outcome.seconds[SKIPPED:])


def report(settings: Settings, outcomes: dict[str, list[Outcome]], rate: float) -> None:
    source, rows = records.for_method(settings, None)
    print(
        f"\n{settings.method}, {settings.mode}, {source}, batch {settings.batch_size}, "
        f"{settings.steps} steps"
    )
    ours, theirs = outcomes["penchant"][0].losses, outcomes["trl"][0].losses
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        print(f"  step {step}: loss {a:.6f} (penchant)  {b:.6f} (trl)  difference {a - b:+.1e}")
    shares = dict.fromkeys(TRAINERS, "")
    if settings.method == "dpo":
        for name, flops in zip(
            TRAINERS,
            work.step_flops(settings.model, rows[SKIPPED * settings.batch_size :], settings.mode),
            strict=True,
        ):
            best = min(timed(one) for one in outcomes[name])
            shares[name] = f", {flops / best / rate:.0%} of the matrix rate"
    for name in TRAINERS:
        seconds = [timed(one) for one in outcomes[name]]
        count = (settings.steps - SKIPPED) * settings.batch_size
        memory = max(one.memory_peak_bytes for one in outcomes[name])
        print(
            f"  {name:9} {count / statistics.median(seconds):.2f} examples/s "
            f"(runs: {', '.join(f'{count / s:.2f}' for s in seconds)}), "
            f"peak memory {memory / 2**30:.2f} GiB{shares[name]}"
        )
    both = list(zip(outcomes["penchant"], outcomes["trl"], strict=True))
    ratios = [timed(b) / timed(a) for a, b in both]
    memory = max(b.memory_peak_bytes for _, b in both)
    memory_ratio = max(a.memory_peak_bytes for a, _ in both) / memory
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(
        f"  ratio: {statistics.median(ratios):.2f}x the examples per second "
        f"(round by round {', '.join(f'{r:.2f}' for r in ratios)}), "
        f"{memory_ratio:.2f}x the memory, largest difference in loss {largest:.1e}"
    )
    laid_out = {n: sum(outcomes[n][0].positions[SKIPPED:]) for n in TRAINERS}
    each = {
        name: per_position(
            [one.seconds[SKIPPED:] for one in outcomes[name]],
            [one.positions[SKIPPED:] for one in outcomes[name]],
        )
        for name in TRAINERS
    }
    print(
        f"  positions: {laid_out['penchant']:,} (penchant) and {laid_out['trl']:,} (trl), "
        f"{laid_out['trl'] / laid_out['penchant']:.2f}x as many; "
        f"{each['penchant'] / 1e3:.1f} and {each['trl'] / 1e3:.1f} us each: "
        f"{each['trl'] / each['penchant']:.2f}x the positions per second"
    )


if __name__ == "__main__":
    main()
