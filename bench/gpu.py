"""A trial of the CUDA path in one command: one JSON file and one Markdown table of what it found.

python bench/gpu.py --output trial                     on a machine with a CUDA GPU
python bench/gpu.py --output trial --install           packages come from the registry first
python bench/gpu.py --output trial --wheels FOLDER     ... from a folder, where none can be reached
python bench/gpu.py --output trial --parts kernels,trl
python bench/gpu.py --output trial --device cpu --size tiny     only to see that it runs

A folder of wheels is filled on any machine with a registry, for the Python of the other, with what
that machine lacks beside torch; for an image that has torch, transformers, accelerate and peft:

pip download --no-deps --only-binary=:all: --python-version 3.12 -d FOLDER pydantic pydantic-core
    annotated-types typing-inspection datasets dill multiprocess trl==1.16.0 bitsandbytes
    liger-kernel

Every wheel of the folder is installed beside the output, whatever the machine has itself stays, and
the package is imported from this checkout: nothing is built. What is missing is a row that says so.

Every part is a process of its own that is ended when its time is up, the most telling first. What
it printed until then counts, a failure is a row of the table, a part whose device a failure has
left unusable goes on in a new process, and the next part follows. Together they take less than 20
minutes; with less time, `--seconds 540` divides that among the parts. Records are synthetic,
weights random, the tokenizer is trained on the records. Models of 8B need 20 GB on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# Seconds of each part on a GPU, the most telling first.
PARTS = {
    "kernels": 100.0, "qlora": 150.0, "trl": 330.0, "sampling": 180.0, "methods": 250.0,
    "online": 100.0,
}  # fmt: skip
# How a part ends whose device is of no use any more, and how much time a new process needs.
UNUSABLE, RESTART_SECONDS = 75, 30
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes", "liger-kernel",
            "vllm", "penchant")  # fmt: skip
REENTERED = "PENCHANT_TRIAL_ENVIRONMENT"


def main() -> int:
    options = parse()
    sys.path.append(str(ROOT / "src"))
    if (options.wheels or options.install) and REENTERED not in os.environ:
        return with_packages(options)
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine(options.device), "parts": {}}
    for part in options.parts:
        limit = options.seconds * PARTS[part] / sum(PARTS[name] for name in options.parts)
        print(f"{part}: at most {limit:.0f} s", flush=True)
        found["parts"][part] = carry_out(part, options, limit)
        write(options.output, found)
    rows = [row for one in found["parts"].values() for row in one["rows"]]
    failed = [row for row in rows if "error" in row]
    print(f"{options.output / 'gpu.md'}: {len(rows)} rows, of them {len(failed)} failures")
    return 1 if options.strict and failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--output", type=Path, default=Path("trial"), help="folder for gpu.json and gpu.md")
    add("--work", type=Path, help="folder for models and logs of runs; default: in the output")
    add("--parts", type=part_names, default=list(PARTS), help=f"of {','.join(PARTS)}")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--size", choices=("full", "tiny"), default="full", help="tiny: only to see that it runs")
    add("--seconds", type=float, default=sum(PARTS.values()), help="of all parts together")
    add("--install", action="store_true", help="install what is needed from the registry first")
    add("--wheels", type=Path, help="install what is needed from this folder first")
    add("--strict", action="store_true", help="exit with 1 if a row is a failure")
    return parser.parse_args()


def part_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: the parts are {', '.join(PARTS)}")
    return names


def with_packages(options: argparse.Namespace) -> int:
    """Install beside the output what this machine lacks, and start again with it.

    Into a folder, not an environment: one that is made in another has none of its packages.
    """
    site = (options.output / "site").resolve()
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    wanted = sorted(map(str, options.wheels.glob("*.whl"))) if options.wheels else missing(pip)
    if options.wheels and not wanted:
        raise SystemExit(f"{options.wheels} holds no wheels; --help says how to fill it")
    source = ["--no-index"] if options.wheels else []
    if wanted:
        into = ["--no-deps", "--upgrade", "--target", str(site)]
        subprocess.run([*pip, *source, *into, *wanted], check=True)
    environment = {**os.environ, REENTERED: "1", "PYTHONPATH": path_of(site)}
    command = [sys.executable, str(HERE / "gpu.py"), *sys.argv[1:]]
    return subprocess.run(command, env=environment, check=False).returncode


def missing(pip: list[str]) -> list[str]:
    """What the registry would have to add to this machine's packages, by name and version."""
    wanted = [f"{ROOT}[quantization]", "trl==1.16.0", "liger-kernel"]
    plan = subprocess.run(
        [*pip, "--dry-run", "--report", "-", *wanted], check=True, stdout=subprocess.PIPE, text=True
    )
    found = [one["metadata"] for one in json.loads(plan.stdout)["install"]]
    names = [f"{one['name']}=={one['version']}" for one in found]
    return [name for name in names if not name.startswith("penchant==")]


def path_of(*first: Path) -> str:
    """Where parts look for packages: what was installed for them, and this checkout."""
    return os.pathsep.join([*map(str, first), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])


def machine(device: str) -> dict[str, Any]:
    """The device and the versions that the figures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    found = {"device": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("no CUDA GPU is visible; --device cpu --size tiny shows that it runs")
        own = torch.cuda.get_device_properties(0)
        found |= {"device": own.name, "memory_bytes": own.total_memory, "cuda": torch.version.cuda}
    return {**found, "python": platform.python_version(), "versions": versions}


def carry_out(part: str, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """The rows that a part prints until it ends, or its time is up."""
    settings = {
        "part": part, "device": options.device, "size": options.size, "seconds": limit,
        "folder": str(options.work or options.output / "work"),
    }  # fmt: skip
    script = HERE / ("gpu_kernels.py" if part == "kernels" else "gpu_runs.py")
    environment = {**os.environ, "PYTHONPATH": path_of()}
    if options.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    log = options.output / f"{part}.log"
    log.unlink(missing_ok=True)
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    code = UNUSABLE
    while code == UNUSABLE and (left := limit - (time.perf_counter() - started)) > 0:
        settings |= {"seconds": left, "done": [row["name"] for row in rows]}
        code = follow([sys.executable, str(script), json.dumps(settings)], environment, log, rows)
        if time.perf_counter() - started > limit - RESTART_SECONDS:
            break
    seconds = time.perf_counter() - started
    if code:
        why = f"ended after {limit:.0f} s" if seconds >= limit else f"ended with code {code}"
        tail = log.read_text("utf-8").strip().splitlines()[-1:]
        rows.append({"part": part, "name": "the part itself", "error": "; ".join([why, *tail])})
    return {"seconds": round(seconds, 1), "rows": rows}


def follow(
    command: list[str], environment: dict[str, str], log: Path, rows: list[dict[str, Any]]
) -> int:
    """Run a part's process until it ends or its time is up; its rows are added to `rows`."""
    settings = json.loads(command[-1])
    with log.open("a", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            start_new_session=True,  # its own children end with it
        )  # fmt: skip
        alarm = threading.Timer(settings["seconds"], end, [process])
        alarm.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ROW "):
                rows.append({"part": settings["part"], **json.loads(line.removeprefix("ROW "))})
                print(f"  {cells(rows[-1])[1]}: {cells(rows[-1])[2]}", flush=True)
        code = process.wait()
        alarm.cancel()
    return code


def end(process: subprocess.Popen[str]) -> None:
    """End a part with all that it has started."""
    os.killpg(process.pid, 9)


def write(folder: Path, found: dict[str, Any]) -> None:
    """Both files, whole or as they were."""
    from penchant.core.atomic import write_atomically

    write_atomically(folder / "gpu.json", json.dumps(found, indent=2) + "\n")
    write_atomically(folder / "gpu.md", markdown(found))


def markdown(found: dict[str, Any]) -> str:
    """One table of all rows, under the machine that they were measured on."""
    own = found["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in own["versions"].items() if v)
    seconds = sum(one["seconds"] for one in found["parts"].values())
    lines = [f"{own['device']}, {versions}. {seconds:.0f} s.", "", "| Part | What | Found |",
             "|---|---|---|"]  # fmt: skip
    rows = [row for one in found["parts"].values() for row in one["rows"]]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> tuple[str, str, str]:
    """A row of the table: part, what, and each figure by its name."""
    figures = {k: v for k, v in row.items() if k not in ("part", "name")}
    text = "; ".join(f"{name.replace('_', ' ')} {shown(v)}" for name, v in figures.items())
    return row["part"], row["name"], text.replace("|", "/").replace("\n", " ")


def shown(value: Any) -> str:
    """A figure with four digits; lists of them in brackets."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
