"""How long each recipe takes: two steps with its own numbers, on a tiny model that writes stories.

python bench/recipes.py                  every recipe
python bench/recipes.py dpo own-reward   these

Data are 64 pairs of the sample set, as strings, their labels or their prompts; answers are rewarded
by how many characters they use. Seconds of the steps and of the whole run, without imports.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import penchant
from penchant.commands.demo import sample_set
from penchant.commands.recipes import Recipe, recipes
from penchant.config.files import read_yaml
from penchant.methods import METHODS
from records import shared_folder

NUM_PAIRS, STEPS = 64, 2
REWARD = "def score(completions, **columns):\n    return [len(set(text)) for text in completions]\n"


def write_data(folder: Path) -> dict[str, Path]:
    """The sample set's first pairs as a file of each kind that recipes read."""
    rows = [json.loads(line) for line in sample_set().read_text(encoding="utf-8").splitlines()]

    def text(row: dict[str, Any], side: str) -> str:
        return str(row[side][-1]["content"])

    pairs = [{side: text(row, side) for side in ("prompt", "chosen", "rejected")} for row in rows]
    pairs = [one for one in pairs if one["rejected"].strip()][:NUM_PAIRS]
    labels = [
        {"prompt": one["prompt"], "completion": one[side], "label": side == "chosen"}
        for one in pairs
        for side in ("chosen", "rejected")
    ]
    kinds = {"pairs": pairs, "labels": labels, "prompts": [{"prompt": p["prompt"]} for p in pairs]}
    written = {}
    for kind, each in kinds.items():
        written[kind] = folder / f"{kind}.jsonl"
        written[kind].write_text("".join(json.dumps(one) + "\n" for one in each), encoding="utf-8")
    return written


def run(recipe: Recipe, model: str, data: dict[str, Path], output: Path) -> tuple[float, float]:
    """Seconds of the steps, and of everything."""
    spec, own = METHODS[recipe.method], read_yaml(recipe.file)
    kind = spec.data if spec.data in data else "pairs"
    keys: dict[str, Any] = {"model": model, "data": data[kind], "output": output}
    rewards = output.with_name("rewards.py")
    rewards.write_text(REWARD, encoding="utf-8")
    ours = {"reward": f"{rewards}:score", "teacher_model": model}
    keys |= {key: value for key, value in ours.items() if key in own}
    started = time.perf_counter()
    result = penchant.train(config=recipe.file, max_steps=STEPS, **keys)
    return result.train_seconds, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="recipes; default: every one")
    parser.add_argument("--model", default=str(shared_folder() / "models" / "stories260k"))
    arguments = parser.parse_args()
    table = Table("recipe", "method", "two steps, s", "the run, s")
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder))
        for recipe in recipes():
            if arguments.names and recipe.name not in arguments.names:
                continue
            steps, whole = run(recipe, arguments.model, data, Path(folder) / recipe.name)
            print(f"| {recipe.name} | {steps:.2f} | {whole:.2f} |", flush=True)
            table.add_row(recipe.name, recipe.method, f"{steps:.2f}", f"{whole:.2f}")
    Console().print(table)


if __name__ == "__main__":
    logging.getLogger("penchant").setLevel(logging.ERROR)
    main()
