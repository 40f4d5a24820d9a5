"""Inspect a generated file of a million pairs (about 1 GB): rows per second and peak memory.

    python bench/million.py [--rows 1000000]

The peak is that of the process and its workers together, sampled as proportional set size (shared
pages once) every half second.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from penchant.audit import inspect
from planted import Generator

PROMPT_WORDS, COMPLETION_WORDS = (20, 60), (40, 110)
REPEATED = 100  # every so manieth row repeats another


def write(path: Path, num_rows: int) -> None:
    """Rows of texts cut from a long one, which is quicker than drawing each word."""
    make = Generator(np.random.default_rng(0))
    words = make.words[make.random.choice(len(make.words), 2_000_000, p=make.chances)].tolist()
    starts = make.random.integers(0, len(words) - 200, (num_rows, 3))
    lengths = make.random.integers(*COMPLETION_WORDS, (num_rows, 3))
    lengths[:, 0] = make.random.integers(*PROMPT_WORDS, num_rows)
    with path.open("w", encoding="utf-8") as file:
        for row in range(num_rows):
            source = row // 2 if row % REPEATED == REPEATED - 1 else row
            texts = [
                " ".join(words[start : start + length])
                for start, length in zip(starts[source], lengths[source], strict=True)
            ]
            fields = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
            file.write(json.dumps(fields) + "\n")


class PeakMemory(threading.Thread):
    """Samples the memory of this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.own, self.stopped = 0, 0, threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self.stopped.wait(0.5):
            sizes = []
            for one in (process, *process.children(recursive=True)):
                try:
                    sizes.append(one.memory_full_info().pss)
                except psutil.Error:  # it ended meanwhile
                    continue
            self.peak, self.own = max(self.peak, sum(sizes)), max(self.own, sizes[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "million.jsonl"
        write(path, options.rows)
        print(f"{options.rows:,} rows, {path.stat().st_size / 2**30:.2f} GiB", flush=True)
        memory = PeakMemory()
        memory.start()
        started = time.perf_counter()
        report = inspect(path, processes=options.processes, html=Path(folder) / "report.html")
        seconds = time.perf_counter() - started
        memory.stopped.set()
        memory.join()
    for finding in report.findings:
        print(f"  {finding.id}: {finding.title}")
    print(
        f"{seconds:.0f} s, {options.rows / seconds:,.0f} rows/s, "
        f"peak {memory.peak / 2**30:.2f} GiB with workers, "
        f"{memory.own / 2**30:.2f} GiB of the process itself",
        file=sys.stdout,
    )


if __name__ == "__main__":
    main()
