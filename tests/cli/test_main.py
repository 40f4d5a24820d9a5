"""What a person types and what comes back: help, keys, exit codes, output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from penchant.cli.main import main
from penchant.config.sections import SECTIONS
from penchant.methods import METHODS


def words(*positional: str, **keys: Any) -> list[str]:
    return [*positional, *(w for k, v in keys.items() for w in (f"--{k}", str(v)))]


def shown(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(given)
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def mistake(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """Run what must fail; returns the one line that stands on standard error."""
    assert main(given) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("penchant: ")
    assert err.count("\n") == 1
    return err.removeprefix("penchant: ").rstrip()


@pytest.mark.parametrize("method", METHODS)
def test_help_shows_every_key_with_its_meaning_and_default(
    method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # no line is broken
    text = shown(capsys, "train", method, "--help")
    options = METHODS[method].options
    own = [f"{method} options"] if options.model_fields else []
    for title in (*own, *(section.__doc__ or "" for section in SECTIONS)):
        assert f"{title}:" in text
    for section in (options, *SECTIONS):
        for name, field in section.model_fields.items():
            entry = text.rpartition(f" --{name} ")[2].partition(" --")[0]
            assert field.description
            assert " ".join(field.description.split()) in entry, name
            if not field.is_required():
                spelled = {"None": "none", "True": "true", "False": "false"}
                wanted = spelled.get(str(field.default), str(field.default))
                assert f"(default: {wanted})" in entry, name


def test_help_of_the_program_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    for command in ("train", "evaluate", "methods"):
        assert command in text


def test_methods_prints_every_method_with_when_to_use_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "600")  # no line is broken
    assert main(["methods"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, method in METHODS.items():
        assert f" {name} " in text
        assert method.facts.when in text
        assert f"{method.facts.learning_rate:g} ({method.facts.learning_rate_lora:g})" in text


def test_hyphens_underscores_and_equal_signs_are_the_same(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    spellings = (
        ["--max-steps", "1", "--label_smoothing", "0.2", "--shuffle", "false"],
        ["--max_steps=1", "--label-smoothing=0.2", "--shuffle=false"],
    )
    found = []
    for i, spelling in enumerate(spellings):
        output = tmp_path / str(i)
        assert main([*words("train", "dpo", **tiny_keys, output=output), *spelling]) == 0
        config = yaml.safe_load((output / "config.yaml").read_text())
        found.append((config["max_steps"], config["label_smoothing"], config["shuffle"]))
    assert found == [(1, 0.2, False)] * 2


def test_strict_can_be_switched_off_by_name(
    tmp_path: Path, tiny_keys: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Path(tiny_keys["data"]).read_text() + '{"prompt": "a row without completions"}\n'
    (tmp_path / "data.jsonl").write_text(rows)
    keys = {**tiny_keys, "data": tmp_path / "data.jsonl", "max_steps": 1}
    assert main(words("train", "dpo", **keys, output=tmp_path / "off", strict="false")) == 0
    assert "1 row refused" in capsys.readouterr().err
    for strict in (["--strict"], ["--strict", "true"]):
        assert main([*words("train", "dpo", **keys, output=tmp_path / "on"), *strict]) == 1
        assert "data.jsonl:25" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["train", "dpo", "--bta", "0.2"], "unknown key 'bta'; did you mean beta?"),
        (["train", "dpo", "--learning-rte=1"], "did you mean learning_rate?"),
        (["train", "ipo", "--label-smoothing", "0"], "an option of dpo, simpo, cpo and others"),
        (["train", "dpo", "0.2"], "unexpected '0.2'; every setting is given as --key value"),
        (["train", "dpo", "--data", "d"], "model is required; set model"),
        (["train", "dpo", "--model", "m", "--data", "d", "--beta", "0"], "got '0'; set beta"),
        (["train", "dpo", "--model", "m", "--data", "no-such.jsonl"], "no-such.jsonl"),
        (["train", "dpo", "--config", "no-such.yaml"], "no such configuration file"),
        (["train", "dpo", "--beta"], "--beta"),
        (["train", "dop", "--model", "m"], "dop"),
        (["train"], "METHOD"),
        (["tarin", "dpo"], "tarin"),
        (["evaluate", "--data", "d"], "--model"),
        (["evaluate", "--model", "m", "--data", "d", "--bta", "1"], "--bta"),
        (["evaluate", "--model", "m", "--data", "d", "--beta", "strong"], "strong"),
        (["evaluate", "--model", "m", "--data", "d", "--batch-size", "0"], "batch_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_ends_in_one_line_and_status_1(
    given: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in mistake(capsys, *given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["train", "dpo", "--data", "d"],
        ["check", "dpo", "--model", "m", "--data", "d", "--beta", "0"],
        ["sweep", "dpo", "--model", "m", "--data", "d", "--beta", "0,1"],
    ],
)
def test_a_wrong_key_or_value_is_refused_without_torch(words: list[str]) -> None:
    code = "import sys\nfrom penchant.cli.main import main\nprint(main(sys.argv[1:]))\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.stdout.split() == ["1", "False"], done.stderr


@pytest.mark.parametrize(
    "given",
    [
        ["evaluate", "--model", "m", "--data", "d"],
        ["compare", "--methods", "dpo", "--model", "m", "--data", "d"],
        ["chat", "m"],
        ["merge", "m"],
        ["demo"],
        ["data", "inspect", "d"],
    ],
    ids=lambda words: words[0],
)
def test_what_each_of_several_processes_would_do_again_is_refused(
    given: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 were launched; start it without a launcher" in mistake(capsys, *given)


@pytest.mark.parametrize(
    ("command", "shows"),
    [("train", "print_result"), ("sweep", "print_sweep"), ("check", "print_check")],
)
def test_of_several_processes_one_shows_the_result(
    command: str,
    shows: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = SimpleNamespace(errors=[])
    monkeypatch.setattr(f"penchant.commands.{command}.{command}", lambda *_, **__: result)
    monkeypatch.setattr(f"penchant.cli.show.{shows}", lambda _: print("the result"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, expected in (("0", "the result\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert main([command, "dpo", "--model", "m", "--data", "d", "--beta", "0.1"]) == 0
        assert capsys.readouterr().out == expected


def test_errors_of_a_check_of_several_processes_are_the_status_of_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher that saw another process fail would end this one before it has told them."""
    result = SimpleNamespace(errors=["an error"])
    monkeypatch.setattr("penchant.commands.check.check", lambda *_, **__: result)
    monkeypatch.setattr("penchant.cli.show.print_check", lambda _: print("the error"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, status, shown in (("0", 1, "the error\n"), ("1", 0, "")):
        monkeypatch.setenv("RANK", rank)
        assert main(["check", "dpo", "--model", "m", "--data", "d"]) == status
        assert capsys.readouterr().out == shown


def test_a_mistake_is_known_to_what_ends_the_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "last_value", None, raising=False)
    told = mistake(capsys, "train", "dpo", "--model", "m", "--bta", "0.2")
    assert told in str(sys.last_value)


def test_impossible_option_given_to_evaluate_is_refused_before_data_or_weights_are_read(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words("evaluate", model=tiny_model_dir, data="no-such.jsonl", beta=0)
    assert "greater than 0, got" in (told := mistake(capsys, *given))
    assert told.endswith("set beta")


def test_training_from_the_shell_prints_plain_lines_and_evaluation(
    tmp_path: Path, tiny_keys: dict[str, Any], held_out_file: Path
) -> None:
    keys = {**tiny_keys, "eval_data": held_out_file, "output": tmp_path / "run"}
    command = [sys.executable, "-m", "penchant", *words("train", "dpo", **keys)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == [f"{i}/6" for i in range(1, 7)]
    for line in steps:
        for name in ("loss", "margin", "accuracy", "tokens/s", "left"):
            assert name in line
    for text in (done.stdout, done.stderr):
        assert "\x1b" not in text  # no colours, no cursor movements
        assert "\r" not in text
    assert "reward/accuracy" in done.stdout
    assert "before" in done.stdout
    assert str(tmp_path / "run") in done.stdout.replace("\n", "")


def test_mistake_found_while_running_ends_in_one_line(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    keys = {"model": tiny_model_dir, "data": tmp_path / "empty.jsonl", "output": tmp_path / "run"}
    assert "empty.jsonl" in mistake(capsys, *words("train", "dpo", **keys))


def test_mistake_shows_no_traceback_in_the_shell() -> None:
    command = [sys.executable, "-m", "penchant", "train", "dpo", "--bta", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("penchant: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_keys: dict[str, Any], held_out_file: Path
) -> Path:
    from penchant import train

    output = tmp_path_factory.mktemp("cli") / "run"
    train("dpo", output=output, eval_data=str(held_out_file), max_steps=2, **tiny_keys)
    return output


def test_evaluate_json_has_the_numbers_of_every_file_and_of_all_together(
    finished_run: Path,
    held_out_file: Path,
    training_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [str(held_out_file), str(training_file)]
    given = ["evaluate", "--model", str(finished_run), "--json"]
    assert main([*given, *(word for file in files for word in ("--data", file))]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [*files, "all"]
    assert [one["num_examples"] for one in found.values()] == [8, 24, 32]
    for metric in ("margin", "accuracy"):  # of pairs, these are means over the pairs
        first, second, together = (one[metric] for one in found.values())
        assert together == pytest.approx((8 * first + 24 * second) / 32, abs=1e-6)
    for file in files:
        assert {"accuracy", "margin", "logprob_chosen", "logprob_rejected", "kl"} <= set(
            found[file]
        )
        assert found[file]["kl"] > 0


def test_evaluate_table_has_a_column_for_every_file(
    finished_run: Path, held_out_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("evaluate", model=finished_run, data=held_out_file)) == 0
    out = capsys.readouterr().out
    for metric in ("reward/accuracy", "reward/margin", "kl", "logprob/chosen", "logprob/rejected"):
        assert metric in out


def test_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penchant.commands.train.train", interrupt)
    assert main(["train", "dpo", "--model", "m", "--data", "d"]) == 130
    assert "--resume" in capsys.readouterr().err
