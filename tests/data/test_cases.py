"""Public layouts, as small files: each is read, or refused with a command that works as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.cli.main import main
from penchant.data import inspect
from penchant.data.faults import FAULTS
from penchant.data.named_words import parse_columns
from penchant.data.prompts import read_prompts
from penchant.data.read import read_pairs
from penchant.data.read_labels import read_labels
from penchant.data.records import DataError, Label, Pair, Record, Text, prompt_key
from penchant.data.rows.messages import contents

FOLDER = Path(os.environ.get("PENCHANT_SHARED", Path(__file__).parents[3] / "shared")) / "cases"
FILES = sorted(path.name for path in (FOLDER / "data").glob("*"))
# Pictures, two answers without anything that says what was asked, an object in place of a text.
REFUSED = {"arenahard_ans.jsonl", "hhh.json", "lf_rlhfv_images.json", "llava_rlhf.json",
           "tejas_dpo.jsonl"}  # fmt: skip
# Questions, or answers that nobody has judged.
PROMPTS = {"mtb_question.jsonl", "sft_alpaca.jsonl", "sft_chat.jsonl",
           "vicuna_q.jsonl"}  # fmt: skip
COMMAND = re.compile(r"^ *(penchant data (?:convert|build) .*)$", re.M)
COLUMNS = re.compile(r"--columns (\S+)")
NEEDED = pytest.mark.skipif(not FILES, reason="needs the cases in ../shared")


def records_of(source: Path, columns: str = "") -> list[Record]:
    """The pairs or the labels of a source.

    Raises:
        DataError: it holds none.
    """
    how: Any = {"columns": parse_columns(columns)} if columns else {}
    try:
        return list(read_pairs(source, **how).records)
    except DataError as error:
        try:
            return list(read_labels(source, **how).records)
        except DataError:
            raise error from None  # what is said of pairs


def made_of(name: str, folder: Path) -> tuple[Path, str]:
    """What training reads of a case, after the command or the option that its refusal names."""
    source = FOLDER / "data" / name
    refusal = ""
    try:
        records_of(source)
    except DataError as error:
        refusal = str(error)
    if command := COMMAND.search(refusal):
        words = shlex.split(command[1])[1:]
        words[-1] = str(folder / words[-1])  # the output
        assert main(words) == 0, command[1]
        return Path(words[-1]), ""
    columns = COLUMNS.search(refusal)
    assert columns or not refusal, f"{name}: the refusal names nothing to do: {refusal}"
    return source, shlex.split(columns[1])[0] if columns else ""


def text_of(text: Text) -> str:
    return "\n".join(contents(text))


def wrong(records: list[Record]) -> Iterator[Record]:
    """Preferences the other way round, and labels likewise."""
    for record in records:
        if isinstance(record, Pair):
            sides = text_of(record.chosen), text_of(record.rejected)
        else:
            assert isinstance(record, Label)
            said = text_of(record.completion)
            sides = (said, "") if record.desirable else ("", said)
        if "BAD" in sides[0] or "GOOD" in sides[1]:
            yield record


@NEEDED
@pytest.mark.parametrize("name", FILES)
def test_a_case_is_read_the_right_way_round_or_its_refusal_says_how(
    name: str, tmp_path: Path
) -> None:
    source = FOLDER / "data" / name
    if name in REFUSED:
        with pytest.raises(DataError):
            records_of(source)
        return
    if name in PROMPTS:
        assert read_prompts(source).records
        return
    path, columns = made_of(name, tmp_path)
    records = records_of(path, columns)
    assert records and not list(wrong(records))
    report = inspect(path, columns=parse_columns(columns) if columns else None, processes=1)
    assert report.counts[report.kind] == len(records)


@NEEDED
@pytest.mark.slow
def test_two_steps_of_training_take_every_case_and_find_what_inspect_finds(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    for name in FILES:
        if name in REFUSED | PROMPTS:
            continue
        folder = tmp_path / name
        folder.mkdir()
        path, columns = made_of(name, folder)
        records = records_of(path, columns)
        method = "dpo" if isinstance(records[0], Pair) else "kto"
        if method == "kto" and len({*map(prompt_key, records)}) == 1:
            continue  # refused: its KL term is estimated from completions of other prompts
        result = penchant.train(
            method, model=str(tiny_model_dir), data=str(path), output=folder / "run",
            columns=parse_columns(columns) if columns else {}, chat_template="chatml", max_steps=2,
            max_length=2048,
            per_device_train_batch_size=2, gradient_accumulation_steps=1, monitor_prompts=0,
        )  # fmt: skip
        steps = (result.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert any(json.loads(line).get("step") == 2 for line in steps), name
        inspected = inspect(path, columns=parse_columns(columns) if columns else None, processes=1)
        of_data = {*FAULTS, "length-bias", "label-noise"}
        findings = {one.id: one.title for one in inspected.findings if one.id in of_data}
        lines = (result.output / "findings.jsonl").read_text(encoding="utf-8").splitlines()
        found = {one["id"]: one["what"] for one in map(json.loads, lines)}
        assert {k: v for k, v in found.items() if k in of_data} == findings, name
