"""Models with windows and linear layers: Penchant packed, Penchant padded, and TRL, in turn.

python bench/models.py                          random Gemma 3 and Qwen3.5 of about 100M, DPO, LoRA
python bench/models.py --families gemma3 --rounds 3 --pairs 48
python bench/models.py --size tiny --pairs 4 --rounds 1      only to see that it runs

Every run is a process of its own; where it has more steps than one, the first warms up and does not
count. The tokenizer is trained on the records, so that a vocabulary
of 8,192 reads them at an ordinary length and the head is no larger a part than in a large model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

import compare
import records
from settings import Outcome, Settings

VOCABULARY = 8192
READ = 2000  # records that the tokenizer is trained on
# How each engine is run: the trainer, and Penchant's layout.
ENGINES = {"packed": ("penchant", "auto"), "padded": ("penchant", "plain"), "trl": ("trl", "auto")}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Family:
    """A model type of transformers, what it needs beside the sizes, and where its LoRA goes."""

    model_type: str
    sizes: dict[str, dict[str, Any]]
    shape: dict[str, Any]
    targets: tuple[str, ...]


FAMILIES = {
    "gemma3": Family(
        "gemma3_text",
        {
            "100m": {
                "hidden_size": 768, "intermediate_size": 2560, "num_hidden_layers": 12,
                "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
            },
            "tiny": {
                "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
                "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16,
            },
        },
        {"sliding_window": 512, "query_pre_attn_scalar": 256, "tie_word_embeddings": True},
        ATTENTION,
    ),
    "qwen3_5": Family(
        "qwen3_5_text",
        {
            "100m": {
                "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12,
                "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 128,
                "linear_num_key_heads": 6, "linear_num_value_heads": 12,
                "linear_key_head_dim": 64, "linear_value_head_dim": 64,
            },
            "tiny": {
                "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
                "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                "linear_key_head_dim": 16, "linear_value_head_dim": 16,
            },
        },
        {"tie_word_embeddings": True},
        (*ATTENTION, "in_proj_qkv", "in_proj_z", "out_proj"),
    ),
}  # fmt: skip


def main() -> None:
    options = parse()
    started, found = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = trained_tokenizer(options.seed, options.lengths)
        settings = {
            name: settings_of(options, name, make_model(name, options.size, tokenizer, folder))
            for name in options.families
        }
        outcomes: dict[str, dict[str, list[Outcome]]] = {
            name: {engine: [] for engine in ENGINES} for name in settings
        }
        took = dict.fromkeys(settings, 0.0)  # seconds of the family's last round
        for number, (name, one) in product(range(options.rounds), settings.items()):
            begun = time.perf_counter()
            if begun - started + took[name] > options.seconds:
                print(f"{name}: round {number + 1} is left out, it would not end in time")
                continue
            for engine in ENGINES:
                outcomes[name][engine].append(run(engine, one))
            took[name] = time.perf_counter() - begun
        for name, one in settings.items():
            found.append(summary(name, options.size, one, tokenizer, outcomes[name]))
    table = markdown(found)
    print(table)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "models.json").write_text(json.dumps(found, indent=2) + "\n")
        (options.output / "models.md").write_text(table + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--families", type=families, default=list(FAMILIES), help=f"of {','.join(FAMILIES)}")
    add("--size", choices=("100m", "tiny"), default="100m")
    add("--rounds", type=int, default=2, help="runs of each engine, in turn")
    add("--pairs", type=int, default=12, help="preference pairs of a run, a multiple of the batch")
    add(
        "--seconds",
        type=float,
        default=340,
        help="leave out rounds that would end later",
    )
    add("--batch_size", type=int, default=4)
    add("--max_length", type=int, default=1024)
    add("--lengths", choices=records.LENGTHS, help="synthetic records with such lengths")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="folder for models.json and models.md")
    options = parser.parse_args()
    if options.pairs < options.batch_size or options.pairs % options.batch_size:
        parser.error(f"--pairs {options.pairs}: give a multiple of {options.batch_size}")
    return options


def families(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in FAMILIES:
            raise argparse.ArgumentTypeError(f"{name!r}: one of {', '.join(FAMILIES)}")
    return names


def trained_tokenizer(seed: int, lengths: str | None) -> Any:
    """A byte-level BPE of the records' own text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    _, rows = records.load(READ, seed, lengths)
    backend.train_from_iterator((text for row in rows for text in row.values()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def make_model(name: str, size: str, tokenizer: Any, folder: str) -> Path:
    """A folder with random weights of the family and the tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family, target = FAMILIES[name], Path(folder) / name
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family.model_type, **family.sizes[size], **family.shape, vocab_size=VOCABULARY,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    print(f"{name}: {model.num_parameters() / 1e6:.0f}M parameters", flush=True)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def settings_of(options: argparse.Namespace, name: str, model: Path) -> Settings:
    return Settings(
        model=str(model), method="dpo", mode="lora", steps=options.pairs // options.batch_size,
        batch_size=options.batch_size, max_length=options.max_length, seed=options.seed,
        precision="fp32", lengths=options.lengths, attention="auto",
        lora_targets=",".join(FAMILIES[name].targets),
    )  # fmt: skip


def run(engine: str, settings: Settings) -> Outcome:
    trainer, attention = ENGINES[engine]
    outcome = compare.run(trainer, replace(settings, attention=attention))
    rate = (settings.steps - warm_up(settings)) * settings.batch_size / timed(settings, outcome)
    print(f"  {Path(settings.model).name} {engine}: {rate:.2f} pairs/s", flush=True)
    return outcome


def warm_up(settings: Settings) -> int:
    """Steps at the start that do not count."""
    return min(1, settings.steps - 1)


def timed(settings: Settings, outcome: Outcome) -> float:
    """Seconds of the steps that count."""
    return sum(outcome.seconds[warm_up(settings) :])


def positions(settings: Settings, rows: list[dict[str, str]], tokenizer: Any) -> tuple[int, int]:
    """Positions of one pass: with shared prompts, and in rows padded to the batch's longest."""
    lengths = [[len(tokenizer(row[side])["input_ids"]) for side in row] for row in rows]
    packed = sum(prompt + chosen + rejected + 2 for prompt, chosen, rejected in lengths)
    padded = 0
    for start in range(0, len(lengths), settings.batch_size):
        batch = lengths[start : start + settings.batch_size]
        padded += 2 * len(batch) * max(p + max(c, r) + 1 for p, c, r in batch)
    return packed, padded


def summary(
    name: str, size: str, settings: Settings, tokenizer: Any, outcomes: dict[str, list[Outcome]]
) -> dict[str, Any]:
    """What one family's runs say: rates, memory, ratios round by round."""
    source, rows = records.for_method(settings, None)
    rows = rows[warm_up(settings) * settings.batch_size :]
    packed, padded = positions(settings, rows, tokenizer)
    seconds = {engine: [timed(settings, one) for one in runs] for engine, runs in outcomes.items()}
    counts = {"packed": packed, "padded": padded, "trl": padded}
    return {
        "family": name, "size": size, "records": source, "pairs": len(rows),
        "engines": {
            engine: {
                "pairs_per_second": [len(rows) / each for each in seconds[engine]],
                "positions": counts[engine],
                "positions_per_second": [counts[engine] / each for each in seconds[engine]],
                "memory_peak_bytes": max(one.memory_peak_bytes for one in runs),
                "losses": runs[0].losses,
            }
            for engine, runs in outcomes.items()
        },
        "packed_over": {
            engine: {
                "pairs_per_second": ratios(seconds[engine], seconds["packed"]),
                "positions_per_second": ratios(
                    seconds[engine], seconds["packed"], counts["packed"] / counts[engine]
                ),
                "largest_difference_in_loss": largest(
                    outcomes["packed"][0].losses, outcomes[engine][0].losses
                ),
            }
            for engine in ENGINES if engine != "packed"
        },
    }  # fmt: skip


def ratios(theirs: list[float], ours: list[float], scale: float = 1.0) -> list[float]:
    return [scale * b / a for a, b in zip(ours, theirs, strict=True)]


def largest(ours: Iterable[float], theirs: Iterable[float]) -> float:
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def markdown(found: list[dict[str, Any]]) -> str:
    """A row for each family and engine; ratios are packed over that engine, round by round."""
    lines = [
        "| Model | Engine | Pairs/s | Positions | Peak memory | Packed, by pairs | by positions "
        "| Largest difference in loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        for engine, row in one["engines"].items():
            over = one["packed_over"].get(engine)
            cells = [
                f"{one['family']} {one['size']}, {one['pairs']} pairs of {one['records']}",
                engine, f"{median(row['pairs_per_second']):.2f}", f"{row['positions']:,}",
                f"{row['memory_peak_bytes'] / 2**30:.2f} GiB",
                times(over["pairs_per_second"]) if over else "",
                times(over["positions_per_second"]) if over else "",
                f"{over['largest_difference_in_loss']:.1e}" if over else "",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def times(values: list[float]) -> str:
    return f"{median(values):.2f}x ({', '.join(f'{value:.2f}' for value in values)})"


if __name__ == "__main__":
    main()
