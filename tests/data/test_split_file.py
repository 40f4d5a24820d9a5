"""A file is divided by prompt: nothing leaks, the parts are alike, the bytes are the seed's."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from penchant.cli.main import main
from penchant.data.records import DataError
from penchant.data.split_file import assign, split_file

WORDS = [f"w{n}" for n in range(500)]


def rows(number, seed=0):
    rng = random.Random(seed)
    made = []
    for n in range(number):
        prompt = " ".join(rng.choices(WORDS, k=40))
        source = "forum" if n % 4 else "wiki"
        answer = "x " * rng.randrange(5, 400)
        made.append({"prompt": prompt, "chosen": answer, "rejected": "y", "source": source, "n": n})
    return made


def changed(prompt, rng, share=0.05):
    words = prompt.split()
    for at in rng.sample(range(len(words)), round(share * len(words))):
        words[at] = "changed"
    return " ".join(words)


def jsonl(path, data):
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_near_duplicate_prompts_are_never_on_two_sides(tmp_path):
    rng = random.Random(1)
    base = rows(400)
    twins = [{**row, "prompt": changed(row["prompt"], rng), "n": row["n"]} for row in base[:200]]
    source = jsonl(tmp_path / "d.jsonl", base + twins)
    done = split_file(source, tmp_path / "out", parts={"train": 0.5, "test": 0.5})
    sides = [{row["n"] for row in read(part.output)} for part in done.parts]
    leaked = len(sides[0] & sides[1])
    assert leaked <= 0.1 * len(twins), leaked
    assert abs(done.near - 200) <= 20


def test_equal_prompts_stay_together_without_near_ones_at_similarity_1(tmp_path):
    base = rows(50)
    done = split_file(
        base + base, tmp_path / "out", parts={"a": 0.5, "b": 0.5}, similarity=1, seed=3
    )
    sides = [{row["n"] for row in read(part.output)} for part in done.parts]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 50


def test_parts_have_the_shares_asked_for_and_are_alike_in_source_and_length(tmp_path):
    done = split_file(
        rows(2000), tmp_path / "out", parts={"train": 0.8, "eval": 0.1, "test": 0.1}, seed=5
    )
    assert [part.rows for part in done.parts] == pytest.approx([1600, 200, 200], abs=2)
    for part in done.parts:
        assert part.sources["wiki"] / part.rows == pytest.approx(0.25, abs=0.01)
    lengths = [part.length for part in done.parts]
    assert max(lengths) / min(lengths) < 1.15


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_division(tmp_path):
    source = jsonl(tmp_path / "d.jsonl", rows(100))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        split_file(source, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "test.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_rows_keep_all_columns_and_their_order(tmp_path):
    source = rows(60)
    done = split_file(source, tmp_path / "out")
    parts = [read(part.output) for part in done.parts]
    assert sorted((row for part in parts for row in part), key=lambda row: row["n"]) == source
    assert all(part == sorted(part, key=lambda row: row["n"]) for part in parts)


def test_no_part_stays_empty_when_one_prompt_has_nearly_all_rows():
    strata = {0: ("s", 1000), 1: ("s", 1), 2: ("s", 1)}
    assert sorted(assign(strata, [0.8, 0.1, 0.1], seed=0).values()) == [0, 1, 2]


def test_rows_without_a_prompt_are_counted(tmp_path):
    done = split_file([*rows(20), {"text": "x"}], tmp_path / "out")
    assert done.refused.counts == {"missing field": 1}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"parts": {"train": 1.0}}, "parts must name at least two"),
        ({"parts": {"a": 0.5, "b": 0.6}}, "must add up to 1, got 1.1"),
        ({"parts": {"a": 1.5, "b": -0.5}}, "shares above 0, got b=-0.5"),
        ({"parts": {"../a": 0.5, "b": 0.5}}, "parts must be names"),
        ({"similarity": 0}, "similarity must be above 0"),
        ({"format": "csv"}, "format must be one of jsonl"),
    ],
)
def test_impossible_setting_is_named(tmp_path, options, told):
    with pytest.raises(DataError, match=told):
        split_file(rows(10), tmp_path / "out", **options)


def test_too_few_prompts_and_files_that_exist_are_errors(tmp_path):
    with pytest.raises(DataError, match="has 1 distinct prompt, too few for 2 parts"):
        split_file(rows(1) * 5, tmp_path / "out")
    split_file(rows(10), tmp_path / "out")
    with pytest.raises(DataError, match=r"train\.jsonl exists"):
        split_file(rows(10), tmp_path / "out")


def test_command_prints_what_stands_where(tmp_path, capsys):
    source = jsonl(tmp_path / "d.jsonl", rows(100))
    words = ["--output", str(tmp_path / "out"), "--parts", "train=0.8,eval=0.2"]
    assert main(["data", "split", str(source), *words]) == 0
    out = capsys.readouterr().out
    assert "divided 100 rows" in out and "train: 80 rows (80.0%, asked 80.0%)" in out
    assert "forum 60 (75.0%), wiki 20 (25.0%)" in out


def test_without_the_optional_packages_equal_prompts_stay_together_and_near_ones_name_the_extra(
    tmp_path,
):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(10)))
    # A module that is None in sys.modules cannot be imported.
    absent = ("scipy", "rensa", "sklearn", "loky", "py3langid", "gguf", "starlette", "bitsandbytes")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
    code += "from penchant.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "data", "split", str(source), "--output"]
    near = subprocess.run([*command, tmp_path / "near"], capture_output=True, text=True)
    assert near.returncode == 1
    assert "penchant[data]" in near.stderr
    assert "set similarity to 1" in near.stderr
    assert "Traceback" not in near.stderr
    equal = subprocess.run([*command, tmp_path / "equal", "--similarity", "1"], check=False)
    assert equal.returncode == 0
    assert sorted(path.name for path in (tmp_path / "equal").glob("*.jsonl"))
