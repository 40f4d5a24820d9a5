"""The checks as a user meets them: at the start of training, as a command, and in the docs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import penchant
from penchant.cli.main import main
from penchant.config.keys import load_config
from penchant.core.errors import ConfigError
from penchant.core.target import Machine
from penchant.core.timing import bf16_slowdown
from penchant.guards.checks import check_snapshot
from penchant.guards.checks.snapshot import DataFacts, ModelFacts, Snapshot, TokenFacts

ROOT = Path(__file__).resolve().parents[3]


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def snapshot(method: str = "dpo", **keys: Any) -> Snapshot:
    """A sound run as rules see it, without data or model."""
    return Snapshot(
        config=load_config(method, {"model": "m", "data": "d", **keys}),
        data=DataFacts(num_train=1000, num_held_out=100, num_prompts=1000, num_chat=1000),
        tokens=TokenFacts(num_examples=1000, num_completions=2000, longest=100),
        model=ModelFacts(dtype="bf16", context=2048),
        num_steps=60,
    )


def found(run: Snapshot) -> dict[str, str]:
    return {finding.id: finding.severity for finding in check_snapshot(run)}


def test_sound_snapshot_has_no_finding() -> None:
    assert found(snapshot()) == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dtype": "bf16"}, {"fp16-of-bf16": "warning"}),
        ({"dtype": "fp32"}, {}),
    ],
)
def test_fp16_is_a_finding_only_for_weights_of_wider_range(
    changes: dict[str, Any], expected: dict[str, str]
) -> None:
    run = snapshot(precision="fp16")
    assert found(replace(run, model=replace(run.model, **changes))) == expected


@pytest.mark.parametrize(("factor", "said"), [(None, False), (0.4, False), (15.0, True)])
def test_bf16_that_a_cpu_emulates_is_said_with_its_factor(
    factor: float | None, said: bool, tiny_keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.core.timing.bf16_slowdown", lambda: factor)

    def emulated(**keys: Any) -> list[str]:
        result = penchant.check("dpo", probe=False, **tiny_keys, **keys)
        return [one.what for one in result.findings if one.id == "bf16-emulated"]

    expected = ["this CPU emulates bf16: a product takes 15.0 times as long as in fp32"] * said
    assert emulated(precision="bf16") == emulated(dtype="bf16") == expected
    assert emulated() == []  # auto does not take it


def test_time_of_a_product_in_bf16_is_measured_where_a_cpu_computes_it() -> None:
    factor = bf16_slowdown()
    assert factor is None if torch.accelerator.is_available() else 0.01 < factor < 1000


def test_context_of_learned_positions_is_an_error_and_of_others_a_warning() -> None:
    run = snapshot()
    run = replace(run, tokens=replace(run.tokens, longest=4096))
    assert found(run) == {"context": "warning"}
    assert found(replace(run, model=replace(run.model, absolute=True))) == {"context": "error"}


def test_answers_that_will_be_sampled_count_towards_the_context() -> None:
    keys = {"reward": "length:20", "max_prompt_length": 100, "max_length": 4096}
    long, short = (snapshot("grpo", **keys, max_completion_length=n) for n in (1949, 1948))
    assert "context" in found(long)
    assert "context" not in found(short)


def test_learning_rate_of_fine_tuning_is_named_for_all_weights_and_fine_for_lora() -> None:
    (finding,) = check_snapshot(snapshot(lora_r=0, learning_rate=2e-5))
    assert "supervised fine-tuning" in finding.what
    assert finding.evidence["range"] == [5e-7, 5e-6]
    assert found(snapshot(learning_rate=2e-5)) == {}


@pytest.mark.parametrize("rate", [5e-7, 5e-6])
def test_ends_of_the_range_are_in_it(rate: float) -> None:
    assert found(snapshot(lora_r=0, learning_rate=rate)) == {}


@pytest.mark.parametrize(
    ("method", "num_processes", "name"), [("reward", 2, "reward-epochs"), ("dpo", 4, "epochs")]
)
def test_steps_of_several_processes_pass_over_the_data_as_often_as_they_take_examples(
    method: str, num_processes: int, name: str
) -> None:
    run = snapshot(
        method, max_steps=40, per_device_train_batch_size=5, gradient_accumulation_steps=5
    )
    assert run.epochs == 1.0
    assert name not in found(run)
    shared = replace(run, num_processes=num_processes)
    (finding,) = [one for one in check_snapshot(shared) if one.id == name]
    assert finding.evidence["epochs"] == num_processes


def test_chat_data_for_a_model_that_knows_no_chat_and_the_reverse() -> None:
    run = snapshot()
    base = replace(run, model=replace(run.model, has_template=False))
    assert found(base) == {"not-instruction-tuned": "warning"}
    strings = replace(run, data=replace(run.data, num_chat=0))
    assert found(strings) == {"chat-as-text": "warning"}
    rendered = replace(strings, data=replace(strings.data, num_rendered=1000))
    assert found(rendered) == {}


def test_near_prompts_are_counted_beside_equal_ones(tiny_model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    words = "Please explain to a child how a small boat with one sail crosses a wide lake"
    prompts = [f"{words} {end}" for end in ("today", "tomorrow")]
    rows = [
        {"prompt": text, "chosen": f"Well {i}", "rejected": "No"} for i, text in enumerate(prompts)
    ]
    result = penchant.check(
        "dpo", model=str(tiny_model_dir), data=rows[:1], eval_data=rows[1:], probe=False,
        output=tmp_path / "run",
    )  # fmt: skip
    (finding,) = [one for one in result.findings if one.id == "near-leaks"]
    assert finding.evidence["num"] == 1
    assert "leaks" not in {one.id for one in result.findings}


def test_training_writes_what_the_checks_find_and_goes_on(
    tmp_path: Path, tiny_keys: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    result = penchant.train("dpo", output=tmp_path / "run", **tiny_keys)
    records = [record for record in read(result.output / "findings.jsonl") if record["step"] == 0]
    assert {"learning-rate", "chat-as-text", "no-held-out"} <= {one["id"] for one in records}
    for one in records:
        assert one["docs"] == f"penchant explain {one['id']}"
        assert one["what"] and one["remedy"]
    assert "learning-rate: learning_rate 0.01 is above" in " ".join(capfd.readouterr().err.split())


def test_silenced_findings_are_neither_said_nor_written(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    silence = "learning-rate, chat-as-text"
    result = penchant.train("dpo", output=tmp_path / "run", silence=silence, **tiny_keys)
    ids = {record["id"] for record in read(result.output / "findings.jsonl")}
    assert "no-held-out" in ids
    assert not ids & {"learning-rate", "chat-as-text"}
    checked = penchant.check(
        "dpo", output=tmp_path / "c", probe=False, silence=silence, **tiny_keys
    )
    assert {finding.id for finding in checked.findings} & {"learning-rate", "chat-as-text"} == set()


def test_error_stops_training_before_it_starts_and_can_be_silenced(
    tmp_path: Path, tiny_keys: dict[str, Any], make_model: Callable[..., Any], tiny_model_dir: Path
) -> None:
    folder = tmp_path / "gpt2"
    shutil.copytree(tiny_model_dir, folder)
    # Positions are learned for 32 tokens; rotary ones go on.
    make_model("gpt2", vocab_size=259, max_position_embeddings=32, n_positions=32).save_pretrained(
        folder
    )
    long = [{"prompt": "x" * 20, "chosen": "y" * 30 + str(i), "rejected": "z"} for i in range(4)]
    keys = {**tiny_keys, "model": str(folder), "data": long, "output": tmp_path / "run"}
    checked = penchant.check("dpo", probe=False, **keys)
    assert [finding.id for finding in checked.errors] == ["context"]
    with pytest.raises(ConfigError, match=r"(?s)context: .*--silence context"):
        penchant.train("dpo", **keys)
    assert not (tmp_path / "run" / "findings.jsonl").exists()
    silenced = penchant.check("dpo", probe=False, silence="context", **keys)
    assert silenced.errors == []


def test_refusal_names_the_finding_and_how_to_override_it() -> None:
    from penchant.core.findings import refuse_errors

    run = snapshot()
    run = replace(
        run, tokens=replace(run.tokens, longest=4096), model=replace(run.model, absolute=True)
    )
    with pytest.raises(ConfigError, match=r"(?s)context: .*4096.*--silence context"):
        refuse_errors(check_snapshot(run))
    refuse_errors([one for one in check_snapshot(run) if one.severity != "error"])


def test_command_prints_findings_preview_and_estimate(
    tiny_keys: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--{key}={value}" for key, value in {**tiny_keys, "output": tmp_path / "r"}.items()]
    assert main(["check", "dpo", *words]) == 0
    out = capsys.readouterr().out
    assert out.index("warning learning-rate") < out.index("note no-held-out")
    assert "penchant explain learning-rate" in out
    assert "⟨<|im_end|>⟩" in out
    assert "memory at the peak" in out
    assert "packed, prompts shared" in out
    assert not (tmp_path / "r").exists()


def test_command_exits_1_on_an_error_and_json_has_everything(
    tiny_keys: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--{key}={value}" for key, value in {**tiny_keys, "output": tmp_path / "r"}.items()]
    assert main(["check", "dpo", *words, "--beta", "-1", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["id"], finding["severity"]) == ("configuration", "error")
    assert finding["remedy"] == "set beta"
    assert main(["check", "dpo", *words, "--json", "--no_probe"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"]["error"] == 0
    assert told["path"]["layers"] == "2 full_attention"
    assert told["path"]["layout"].startswith("packed, prompts shared")
    assert told["estimate"]["peak_bytes"] > 0
    prompt, chosen, rejected = told["preview"]["parts"]
    assert not any(token["loss"] for token in prompt["tokens"])
    for part in (chosen, rejected):
        assert part["ends"]
        assert part["tokens"][-1]["special"]
        assert all(token["loss"] for token in part["tokens"])
    assert main(["check", "dpo", *words, "--json", "--no_probe", "--attention", "plain"]) == 0
    assert json.loads(capsys.readouterr().out)["path"]["layout"].startswith("padded rows")


def test_run_that_cannot_fit_is_refused_with_what_would(
    tiny_keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Machine("cpu", 100_000_000, given=True, precision="fp32")
    monkeypatch.setattr("penchant.commands.check.find_machine", lambda _: small)
    result = penchant.check("dpo", output=tmp_path / "run", **tiny_keys)
    (finding,) = result.errors
    assert finding.id == "memory"
    assert "GiB" in finding.what
