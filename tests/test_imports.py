"""The package and its help answer at once: torch waits until something needs it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.core.errors import UserError

LIMIT_SECONDS = 1.5
HEAVY = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "pyarrow", "pandas", "numpy"),
    *("starlette", "uvicorn", "markdown_it"),
)
REPORT = f"\nimport sys; print('heavy:', [m for m in {HEAVY} if m in sys.modules])"
HELP = (
    "from penchant.cli.main import main\n"
    "try:\n    main({words})\nexcept SystemExit as end:\n    assert not end.code\n"
)
CODE = {
    "import penchant": "import penchant",
    "penchant.METHODS": "import penchant; assert 'dpo' in penchant.METHODS",
    "penchant's names": "import penchant; assert {*penchant.__all__, 'data'} <= {*dir(penchant)}",
    "penchant --help": HELP.format(words=["--help"]),
    "penchant train dpo --help": HELP.format(words=["train", "dpo", "--help"]),
    "penchant methods": HELP.format(words=["methods"]),
    "a wrong value, as JSON": "from penchant.cli.main import main; "
    "assert main(['check', 'dpo', '--json', '--beta', '-1']) == 1",
    "a wrong key": "from penchant.cli.main import main; main(['train', 'dpo', '--bta', '1'])",
}


@pytest.mark.parametrize("what", CODE)
def test_no_torch_is_imported_before_it_is_needed(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE[what] + REPORT],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stdout


@pytest.mark.parametrize("what", ["import penchant", "penchant --help"])
def test_answer_comes_within_a_second_and_a_half(what: str) -> None:
    seconds: list[float] = []
    # The best of three: other processes share the machine.
    while len(seconds) < 3 and min(seconds, default=LIMIT_SECONDS) >= LIMIT_SECONDS:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", CODE[what]], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < LIMIT_SECONDS, seconds


def test_what_penchant_offers_is_reached_by_its_import_alone() -> None:
    code = (
        "import penchant\n"
        "assert callable(penchant.data.inspect) and 'inspect' in dir(penchant.data)\n"
        "assert penchant.compat.trl.DPOTrainer\n"
        "assert callable(penchant.train) and not hasattr(penchant, 'trian')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


RUN = """
import json, sys, penchant
penchant.train("dpo", max_steps=2, **json.loads(sys.argv[1]))
loaded = {name: one for name, one in sys.modules.items() if name.split(".")[0] == "penchant"}
print(json.dumps({name: one.__file__ for name, one in loaded.items()}))
"""


def test_a_run_on_pairs_loads_no_room_that_it_does_not_use(
    tiny_keys: dict[str, Any], tmp_path: Path
) -> None:
    keys = {**tiny_keys, "output": str(tmp_path / "run")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(keys)], capture_output=True, text=True, check=True
    )
    modules = json.loads(done.stdout.splitlines()[-1])
    rooms = {name.split(".")[1] for name in modules if "." in name}
    assert not rooms & {"rl", "label", "compat", "audit", "advising"}
    lines = sum(len(Path(file).read_text("utf-8").splitlines()) for file in modules.values())
    assert (len(modules) <= 110, lines <= 15_000) == (True, True), (len(modules), lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference_model": "no-such-model"}, "no-such-model"),
        ({"max_prompt_length": 64}, "leaves no room"),
        ({"data": "no-such-file.jsonl"}, "no-such-file"),
        ({"chat_template": "no-such-template.jinja"}, "no-such-template"),
        ({"monitor_reward": "judge:http://127.0.0.1:9/v1"}, "no model answers"),
    ],
    ids=["reference", "lengths", "data", "template", "judge"],
)
def test_what_can_be_refused_is_refused_before_a_weight_is_loaded(
    tiny_keys: dict[str, Any],
    model_without_weights: Path,
    tmp_path: Path,
    changes: Any,
    message: str,
) -> None:
    keys = {**tiny_keys, "model": str(model_without_weights), **changes}
    with pytest.raises(UserError, match=message):
        penchant.train("dpo", output=tmp_path / "run", **keys)
