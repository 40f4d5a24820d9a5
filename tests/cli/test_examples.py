"""What help and the program's first screen print can be typed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import penchant
from penchant.cli.arguments import build_parser
from penchant.cli.examples import EXAMPLES, JOURNEYS
from penchant.cli.main import main
from penchant.cli.words import OF_METHODS, as_parsed
from penchant.methods import METHODS

TYPED = [command for _, commands in JOURNEYS for command in commands]
TYPED += [one.replace("{}", "dpo") for each in EXAMPLES.values() for one in each]


@pytest.mark.parametrize("command", TYPED)
def test_a_command_that_is_shown_parses(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("method: dpo\nmodel: m\ndata: d\n")
    command = command.partition(" > ")[0].replace(" [--any_key value ...]", "")
    program, *words = shlex.split(command.replace("[--json]", "--json"))
    assert program == "penchant"
    parsed, unknown = build_parser().parse_known_args(as_parsed(words))
    assert unknown == []
    assert parsed.command == (f"data {words[1]}" if words[0] == "data" else words[0])


def test_without_a_command_the_journeys_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for aim, commands in JOURNEYS:
        assert f"{aim}:\n" in shown
        assert all(f"    {command}\n" in shown for command in commands)


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"penchant {penchant.__version__}\n"


@pytest.mark.parametrize("command", EXAMPLES)
def test_help_begins_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    method = ["dpo"] if command in OF_METHODS else []
    with pytest.raises(SystemExit):
        main([*command.split(), *method, "--help"])
    first = EXAMPLES[command][0].replace("{}", "dpo")
    assert capsys.readouterr().out.startswith(f"usage: {first}\n")


@pytest.mark.parametrize("method", METHODS)
def test_help_of_a_method_has_what_it_cannot_do_without(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", method, "--help"])
    shown = capsys.readouterr().out
    usage, usual = shown.partition("\n\n")[0], shown.partition("usually set:")[2]
    for name, field in METHODS[method].options.model_fields.items():
        if field.is_required():
            assert f"--{name} " in usage and f"--{name} " in usual.partition("\n\n")[0]


def test_hyphens_are_underscores_in_every_command() -> None:
    words = as_parsed(["methods", "--model", "m", "--trust-remote-code"])
    assert build_parser().parse_args(words).trust_remote_code is True


def test_completion_knows_commands_methods_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for word in ("recipes", "--learning_rate", *METHODS):
        assert word in script
