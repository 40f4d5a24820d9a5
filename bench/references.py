"""What each kind of reference costs: memory beside the policy, error of its log-probs, time.

python bench/references.py --pairs 16
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

import records
from compare import demo_model

KINDS = ("adapter", "copy", "copy-8bit", "copy-4bit", "cache")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, as in the demo")
    options = parser.parse_args()
    _, rows = records.load(options.pairs, 0, None)
    table = Table("reference", "memory", "error, nats per token", "pairs/s", "peak memory")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for kind in KINDS:
            output = Path(folder) / kind
            command = [
                *(sys.executable, "-m", "penchant", "train", "dpo"),
                *("--model", options.model or demo_model(), "--data", str(data)),
                *("--output", str(output), "--reference", kind, "--cache_dir", folder),
                *("--gradient_accumulation_steps", "1", "--max_prompt_length", "1023"),
            ]
            subprocess.run(command, check=True, capture_output=True)
            summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
            cost = summary["reference_cost"]
            error = cost["logprob_error"]
            table.add_row(
                kind,
                f"{cost['num_bytes'] / 2**30:.2f} GiB",
                "exact" if error is None else f"{error:.4f}",
                f"{summary['examples_per_second']:.2f}",
                f"{summary['memory_peak_bytes'] / 2**30:.2f} GiB",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
