"""Whole runs of a tiny model: what is trained, what is written, what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

import penchant
from penchant.core.errors import ConfigError, ModelError, TrainingError, UserError
from penchant.data.records import DataError
from penchant.data.tokenise import TokenisedPair
from penchant.models.load import load_tokenizer
from penchant.training.result import TrainResult

STEP_METRICS = {
    "loss", "reward/chosen", "reward/rejected", "reward/margin", "reward/accuracy",
    "logprob/chosen", "logprob/rejected", "grad_norm", "learning_rate", "tokens",
    "tokens_per_second", "memory_peak_bytes",
}  # fmt: skip


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def steps(result: TrainResult) -> list[dict[str, Any]]:
    return [record for record in lines(result.output / "metrics.jsonl") if "loss" in record]


def losses(result: TrainResult) -> list[float]:
    return [record["loss"] for record in steps(result)]


@torch.no_grad()
def plain_logprobs(model: Any, pairs: Sequence[TokenisedPair]) -> torch.Tensor:
    """`[pairs, 2]`, by transformers alone: one sequence at a time, full logits."""
    rows = []
    for pair in pairs:
        for completion in (pair.chosen, pair.rejected):
            ids = torch.tensor([[*pair.prompt, *completion]])
            scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            picked = scores.gather(1, ids[0, 1:, None])[len(pair.prompt) - 1 :]
            rows.append(picked.sum())
    return torch.stack(rows).view(-1, 2)


def training_data(run: TrainResult) -> str:
    import yaml

    return str(yaml.safe_load((run.output / "config.yaml").read_text())["data"])


@pytest.fixture(scope="module")
def lora_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_keys: dict[str, Any], held_out_file: Path
) -> TrainResult:
    """Ten epochs with LoRA, merged too."""
    keys = {**tiny_keys, "eval_data": str(held_out_file), "num_train_epochs": 10, "merge": True}
    return penchant.train("dpo", output=tmp_path_factory.mktemp("lora") / "run", **keys)


@pytest.fixture(scope="module")
def full_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_keys: dict[str, Any], held_out_file: Path
) -> TrainResult:
    """Ten epochs of all weights."""
    keys = {**tiny_keys, "eval_data": str(held_out_file), "num_train_epochs": 10, "lora_r": 0}
    return penchant.train("dpo", output=tmp_path_factory.mktemp("full") / "run", **keys)


@pytest.fixture(params=["lora_run", "full_run"])
def run(request: pytest.FixtureRequest) -> TrainResult:
    return request.getfixturevalue(request.param)


def test_loss_falls_and_held_out_accuracy_rises(run: TrainResult) -> None:
    assert run.before is not None
    assert run.after is not None
    assert losses(run)[0] == pytest.approx(0.6931, abs=1e-4)
    assert sum(losses(run)[-6:]) / 6 < 0.5
    assert run.before.accuracy == 0.5  # every margin is exactly 0 before training
    assert run.after.accuracy == 1
    assert run.after.margin > 0.5
    assert run.after.logprob_accuracy > run.before.logprob_accuracy


def test_metrics_have_the_names_of_the_documentation_and_each_step_once(run: TrainResult) -> None:
    records = steps(run)
    assert [record["step"] for record in records] == list(range(1, 61))
    for record in records:
        assert record.keys() == {"step", "epoch"} | STEP_METRICS
    evaluations = [r for r in lines(run.output / "metrics.jsonl") if "eval/loss" in r]
    assert [record["step"] for record in evaluations] == [0, 60]
    for record in evaluations:
        for name in ("reward/accuracy", "reward/margin", "logprob/chosen", "logprob/rejected"):
            assert f"eval/{name}" in record
        held = json.loads((run.output / "summary.json").read_text())["reference"] != "cache"
        assert ("eval/kl" in record) == ("eval/entropy" in record) == held


def test_metrics_say_what_happened(run: TrainResult, tokenised: Callable[..., Any]) -> None:
    records = steps(run)
    for record in records:
        margin = record["reward/chosen"] - record["reward/rejected"]
        assert record["reward/margin"] == pytest.approx(margin, abs=1e-5)
        assert 0 <= record["reward/accuracy"] <= 1
    pairs = tokenised(training_data(run), run.model)
    assert sum(r["tokens"] for r in records[:6]) == sum(p.group().num_tokens for p in pairs)
    rates = [record["learning_rate"] for record in records]
    assert max(rates) == pytest.approx(1e-2)
    assert rates[0] < max(rates)  # warm-up
    assert rates[-1] < 0.1 * max(rates)  # decay
    assert records[-1]["epoch"] == 10


def test_summary_holds_what_the_result_says(run: TrainResult) -> None:
    summary = json.loads((run.output / "summary.json").read_text())
    assert TrainResult.from_summary(summary) == run
    for name in ("train_seconds", "examples_per_second", "tokens_per_second"):
        assert summary[name] > 0
    assert summary["memory_peak_bytes"] > 50e6  # bytes, not kilobytes
    assert summary["examples_per_second"] == pytest.approx(240 / summary["train_seconds"])
    for moment in ("evaluation_before", "evaluation_after"):
        assert summary[moment]["num_examples"] == 8
    assert summary["tokenising"]["training"]["num_examples"] == 24


def test_samples_hold_the_answers_before_and_after(run: TrainResult) -> None:
    samples = lines(run.output / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [0, 0, 0, 60, 60, 60]
    before, after = samples[:3], samples[3:]
    assert [s["prompt"] for s in before] == [s["prompt"] for s in after]
    assert [s["prompt"] for s in before] == [f"Is {i} {'so' * (i % 5)}?" for i in (24, 25, 26)]
    assert [s["answer"] for s in before] != [s["answer"] for s in after]
    assert all(s["num_tokens"] <= 4 for s in samples)


def test_model_folder_loads_without_penchant_and_scores_as_the_run_ended(
    run: TrainResult,
    held_out_file: Path,
    tokenised: Callable[..., Any],
    load_saved: Callable[..., Any],
) -> None:
    found = plain_logprobs(load_saved(run.model), tokenised(held_out_file, run.model)).mean(0)
    assert run.after is not None
    assert found[0].item() == pytest.approx(run.after.logprob_chosen, abs=1e-4)
    assert found[1].item() == pytest.approx(run.after.logprob_rejected, abs=1e-4)


def test_model_folder_holds_the_tokenizer_with_its_template(
    run: TrainResult, tiny_model_dir: Path
) -> None:
    saved, original = (load_tokenizer(str(folder)) for folder in (run.model, tiny_model_dir))
    chat = [{"role": "user", "content": "Is it so?"}]
    assert saved.apply_chat_template(chat) == original.apply_chat_template(chat)
    assert saved.eos_token_id == original.eos_token_id


def test_nothing_half_written_is_left(run: TrainResult) -> None:
    assert not [path for path in run.output.rglob("*") if path.name.endswith(".partial")]


def test_merged_model_equals_the_adapter(
    lora_run: TrainResult,
    held_out_file: Path,
    tokenised: Callable[..., Any],
    load_saved: Callable[..., Any],
) -> None:
    pairs = tokenised(held_out_file, lora_run.model)
    merged = lora_run.output / "merged"
    assert not (merged / "adapter_config.json").exists()
    difference = plain_logprobs(load_saved(merged), pairs) - plain_logprobs(
        load_saved(lora_run.model), pairs
    )
    assert difference.abs().max() < 1e-5 * 20  # summed over up to 14 tokens


def test_merging_into_a_bf16_base_gives_the_model_that_was_trained(
    tmp_path: Path,
    tiny_keys: dict[str, Any],
    tiny_model_dir: Path,
    held_out_file: Path,
    tokenised: Callable[..., Any],
    load_saved: Callable[..., Any],
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    # A small step: in bf16 most of it would round to nothing.
    keys = {**tiny_keys, "dtype": "bf16", "merge": True, "max_steps": 2, "learning_rate": 1e-3}
    result = penchant.train("dpo", output=tmp_path / "run", **keys)
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).float()
    pairs = tokenised(held_out_file, tiny_model_dir)
    untrained = plain_logprobs(base, pairs)
    expected = plain_logprobs(PeftModel.from_pretrained(base, result.model).eval(), pairs)
    assert (expected - untrained).abs().max() > 1e-3
    merged = plain_logprobs(load_saved(result.output / "merged"), pairs)
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=0)


def test_lora_saves_the_adapter_alone(lora_run: TrainResult) -> None:
    weights = load_file(lora_run.model / "adapter_model.safetensors")
    assert all("lora_" in name for name in weights)
    assert not any("lm_head" in name for name in weights)  # all-linear leaves the head


@pytest.mark.parametrize("lora_r", [8, 0])
def test_every_source_of_reference_log_probs_gives_the_same_losses(
    tmp_path: Path, tiny_keys: dict[str, Any], held_out_file: Path, lora_r: int
) -> None:
    kinds = ("adapter", "copy", "cache") if lora_r else ("copy", "cache")
    runs = {
        kind: penchant.train(
            "dpo",
            output=tmp_path / kind,
            reference=kind,
            lora_r=lora_r,
            eval_data=str(held_out_file),
            **tiny_keys,
        )
        for kind in kinds
    }
    expected = runs["copy"]
    assert losses(expected)[-1] < 0.69
    for kind, result in runs.items():
        assert losses(result) == pytest.approx(losses(expected), abs=1e-5)
        assert result.after is not None
        assert expected.after is not None
        assert result.after.margin == pytest.approx(expected.after.margin, abs=1e-4)
        summary = json.loads((result.output / "summary.json").read_text())
        assert summary["reference"] == kind


def test_reference_cache_is_shared_by_runs_with_other_seeds_and_ranks(
    tmp_path: Path, tiny_keys: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {**tiny_keys, "reference": "cache", "cache_dir": tmp_path / "cache"}
    penchant.train("dpo", output=tmp_path / "first", **keys)
    assert ": 48 completions scored now" in unwrapped(capsys)
    penchant.train("dpo", output=tmp_path / "second", **{**keys, "seed": 1, "lora_r": 4})
    assert ": 0 completions scored now" in unwrapped(capsys)


def test_cache_beside_an_adapter_reports_the_same_kl_as_the_adapter(
    tmp_path: Path, tiny_keys: dict[str, Any], held_out_file: Path
) -> None:
    keys = {**tiny_keys, "eval_data": str(held_out_file), "max_steps": 4}
    cached, adapter = (
        penchant.train("dpo", output=tmp_path / kind, reference=kind, **keys)
        for kind in ("cache", "adapter")
    )
    assert cached.after is not None
    assert adapter.after is not None
    assert cached.after.kl is not None
    assert cached.after.kl > 1e-4
    assert cached.after.kl == pytest.approx(adapter.after.kl, rel=1e-4)
    assert cached.after.entropy == pytest.approx(adapter.after.entropy, rel=1e-4)


def test_reference_cache_holds_only_what_the_run_will_visit(
    tmp_path: Path,
    tiny_keys: dict[str, Any],
    held_out_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = {**tiny_keys, "reference": "cache", "cache_dir": tmp_path / "cache", "max_steps": 2}
    penchant.train("dpo", output=tmp_path / "run", eval_data=str(held_out_file), **keys)
    # 2 steps of 4 training pairs, and the 8 held-out ones
    assert ": 32 completions scored now" in unwrapped(capsys)


def unwrapped(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def other_model(tiny_model_dir: Path, folder: Path, vocabulary: int | None = None) -> Path:
    """The tiny model with other random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(tiny_model_dir, folder)
    config = AutoConfig.from_pretrained(folder)
    config.vocab_size = vocabulary or config.vocab_size
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["copy", "cache"])
def test_another_reference_model_is_the_one_compared_with(
    tmp_path: Path,
    tiny_keys: dict[str, Any],
    tiny_model_dir: Path,
    training_file: Path,
    kind: str,
    tokenised: Callable[..., Any],
    load_saved: Callable[..., Any],
) -> None:
    other = other_model(tiny_model_dir, tmp_path / "other")
    keys = {**tiny_keys, "per_device_train_batch_size": 24, "max_steps": 1, "beta": 0.5}
    result = penchant.train(
        "dpo", output=tmp_path / "run", reference=kind, reference_model=str(other), **keys
    )
    pairs = tokenised(training_file, tiny_model_dir)
    ours, theirs = (plain_logprobs(load_saved(m), pairs) for m in (tiny_model_dir, other))
    margins = 0.5 * ((ours - theirs)[:, 0] - (ours - theirs)[:, 1])
    expected = -torch.nn.functional.logsigmoid(margins).mean()
    assert losses(result)[0] == pytest.approx(expected.item(), abs=1e-5)
    assert abs(losses(result)[0] - 0.6931) > 1e-3


def test_reference_model_with_another_vocabulary_is_refused(
    tmp_path: Path, tiny_keys: dict[str, Any], tiny_model_dir: Path
) -> None:
    other = other_model(tiny_model_dir, tmp_path / "other", vocabulary=300)
    with pytest.raises(ModelError, match=r"vocabulary of 300 tokens, the model 259"):
        penchant.train("dpo", output=tmp_path / "run", reference_model=str(other), **tiny_keys)


@pytest.mark.parametrize("lora_r", [8, 0])
def test_training_goes_on_from_a_run_that_holds_an_adapter(
    tmp_path: Path,
    tiny_keys: dict[str, Any],
    held_out_file: Path,
    lora_run: TrainResult,
    lora_r: int,
    tokenised: Callable[..., Any],
    load_saved: Callable[..., Any],
) -> None:
    keys = {**tiny_keys, "model": str(lora_run.output), "eval_data": str(held_out_file)}
    keys["learning_rate"] = 1e-2 if lora_r else 1e-3
    result = penchant.train("dpo", output=tmp_path / "run", lora_r=lora_r, **keys)
    assert result.before is not None
    assert result.after is not None
    assert lora_run.after is not None
    assert result.before.logprob_chosen == pytest.approx(lora_run.after.logprob_chosen, abs=1e-4)
    found = plain_logprobs(load_saved(result.model), tokenised(held_out_file, result.model)).mean(0)
    assert found[0].item() == pytest.approx(result.after.logprob_chosen, abs=1e-4)
    assert abs(result.after.logprob_chosen - result.before.logprob_chosen) > 1e-2


def test_ipo_pulls_the_margin_to_its_target(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    keys = {**tiny_keys, "num_train_epochs": 20, "beta": 0.5}
    result = penchant.train("ipo", output=tmp_path / "run", **keys)
    assert losses(result)[0] == pytest.approx((1 / (2 * 0.5)) ** 2, abs=1e-5)
    assert losses(result)[-1] < 0.1
    # beta times the target 1 / (2 beta)
    assert steps(result)[-1]["reward/margin"] == pytest.approx(0.5, abs=0.1)


def test_rows_and_datasets_train_like_their_file(
    tmp_path: Path, tiny_keys: dict[str, Any], training_file: Path
) -> None:
    import datasets

    rows = lines(training_file)
    sources = {
        "file": training_file,
        "rows": rows,
        "dataset": datasets.Dataset.from_list(rows),
    }
    found = {
        name: losses(penchant.train("dpo", output=tmp_path / name, **{**tiny_keys, "data": data}))
        for name, data in sources.items()
    }
    assert found["rows"] == found["file"]
    assert found["dataset"] == found["file"]


def test_train_fraction_holds_out_the_rest(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    result = penchant.train("dpo", output=tmp_path / "run", train_fraction=0.75, **tiny_keys)
    assert result.after is not None
    assert result.after.num_examples == 6
    summary = json.loads((result.output / "summary.json").read_text())
    assert summary["tokenising"]["training"]["num_examples"] == 18


def test_chat_data_is_trained_with_the_models_template(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    result = penchant.train(
        "dpo", output=tmp_path / "run", **{**tiny_keys, "data": CHAT, "max_length": 128}
    )
    summary = json.loads((result.output / "summary.json").read_text())
    prompt = "<|im_start|>user\nIs 0 so?<|im_end|>\n<|im_start|>assistant\n"
    num_tokens = len(load_tokenizer(str(result.model))(prompt)["input_ids"])
    assert summary["tokenising"]["training"]["longest_prompt"] == num_tokens


CHAT = [
    {
        "prompt": [{"role": "user", "content": f"Is {number} so?"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    for number in range(8)
]


# What is refused


def refused(error: type[UserError], output: Path, **keys: Any) -> str:
    with pytest.raises(error) as caught:
        penchant.train("dpo", output=output, **keys)
    return str(caught.value)


def test_missing_file_is_refused(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    told = refused(DataError, tmp_path / "run", **{**tiny_keys, "data": tmp_path / "no.jsonl"})
    assert "no.jsonl" in told
    assert not (tmp_path / "run").exists()


def test_empty_file_is_refused(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    told = refused(DataError, tmp_path / "run", **{**tiny_keys, "data": tmp_path / "empty.jsonl"})
    assert "empty.jsonl" in told
    assert not (tmp_path / "run").exists()


def test_empty_held_out_file_is_refused(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    told = refused(DataError, tmp_path / "run", eval_data=tmp_path / "empty.jsonl", **tiny_keys)
    assert "empty.jsonl" in told


def test_data_of_which_every_row_is_refused_is_refused(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    rows = [{"prompt": "p", "chosen": "same", "rejected": "same"}] * 5
    told = refused(DataError, tmp_path / "run", **{**tiny_keys, "data": rows})
    assert "5 refused" in told


def test_refused_rows_are_left_out_and_counted_unless_strict(
    tmp_path: Path,
    tiny_keys: dict[str, Any],
    training_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "p", "chosen": 1}\nnot JSON\n' + training_file.read_text())
    keys = {**tiny_keys, "data": data, "max_steps": 1}
    penchant.train("dpo", output=tmp_path / "run", **keys)
    assert "2 rows refused" in unwrapped(capsys)
    told = refused(DataError, tmp_path / "strict", strict=True, **keys)
    assert "data.jsonl:1" in told
    assert "data.jsonl:2" in told


def test_pairs_left_out_by_cutting_are_counted_in_the_summary(
    tmp_path: Path, tiny_keys: dict[str, Any], training_file: Path
) -> None:
    same = {"prompt": "p", "chosen": "a" * 80 + " yes", "rejected": "a" * 80 + " no"}
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(same) + "\n" + training_file.read_text())
    result = penchant.train("dpo", output=tmp_path / "run", **{**tiny_keys, "data": data})
    counted = json.loads((result.output / "summary.json").read_text())["tokenising"]["training"]
    assert counted["dropped"] == {"chosen equals rejected once cut": 1}


def test_split_of_a_single_prompt_is_refused(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    rows = [{"prompt": "p", "chosen": f"yes {i}", "rejected": "no"} for i in range(4)]
    told = refused(DataError, tmp_path / "run", train_fraction=0.5, **{**tiny_keys, "data": rows})
    assert "1 distinct prompt" in told


def test_missing_model_is_refused_and_does_not_take_the_output(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    told = refused(ModelError, tmp_path / "run", **{**tiny_keys, "model": str(tmp_path / "no")})
    assert "neither a folder nor a hub id" in told
    penchant.train("dpo", output=tmp_path / "run", max_steps=1, **tiny_keys)


def changed_copy(tiny_model_dir: Path, folder: Path, *removed: str, **settings: Any) -> Path:
    """The tiny model with other tokenizer settings."""
    shutil.copytree(tiny_model_dir, folder)
    for name in removed:
        (folder / name).unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    before = {k: v for k, v in json.loads(file.read_text()).items() if k not in removed}
    file.write_text(json.dumps({**before, **settings}))
    return folder


def test_chat_data_for_a_model_without_template_is_refused_with_the_remedy(
    tmp_path: Path, tiny_keys: dict[str, Any], tiny_model_dir: Path
) -> None:
    bare = changed_copy(tiny_model_dir, tmp_path / "bare", "chat_template.jinja", "chat_template")
    keys = {**tiny_keys, "data": CHAT, "max_length": 128, "model": str(bare)}
    assert "no chat template; give one with chat_template" in refused(
        ModelError, tmp_path / "run", **keys
    )
    # the remedy, in the same output folder
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    penchant.train("dpo", output=tmp_path / "run", chat_template=str(template), **keys)


def test_tokenizer_without_end_token_is_refused(
    tmp_path: Path, tiny_keys: dict[str, Any], tiny_model_dir: Path
) -> None:
    endless = changed_copy(tiny_model_dir, tmp_path / "endless", "eos_token", "pad_token")
    told = refused(ModelError, tmp_path / "run", **{**tiny_keys, "model": str(endless)})
    assert "no EOS token" in told


def test_tokenizer_without_pad_token_trains_as_with_one(
    tmp_path: Path, tiny_keys: dict[str, Any], tiny_model_dir: Path
) -> None:
    padless = changed_copy(tiny_model_dir, tmp_path / "padless", "pad_token")
    found = []
    for i, model in enumerate((padless, tiny_model_dir)):
        keys = {**tiny_keys, "model": str(model), "attention": "plain", "max_steps": 3}
        found.append(losses(penchant.train("dpo", output=tmp_path / str(i), **keys)))
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_reward_model_given_as_model_is_refused(
    tmp_path: Path, tiny_keys: dict[str, Any], classifier: Callable[[int], str]
) -> None:
    told = refused(ModelError, tmp_path / "run", **{**tiny_keys, "model": classifier(1)})
    assert "LlamaForSequenceClassification, which scores text" in told


def test_folder_without_a_model_is_refused(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    (tmp_path / "nothing").mkdir()
    told = refused(
        ModelError, tmp_path / "run", **{**tiny_keys, "model": str(tmp_path / "nothing")}
    )
    assert "holds no model" in told


def test_unknown_lora_layers_are_refused(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    told = refused(ModelError, tmp_path / "run", lora_target_modules="c_attn", **tiny_keys)
    assert "no layer is called c_attn; this model has" in told
    assert "q_proj" in told
    # PEFT itself would train q_proj alone
    told = refused(ModelError, tmp_path / "run", lora_target_modules="q_proj,v_prj", **tiny_keys)
    assert "no layer is called v_prj;" in told


def test_lora_layers_may_be_listed_with_spaces(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    result = penchant.train(
        "dpo",
        output=tmp_path / "run",
        lora_target_modules="q_proj, v_proj",
        max_steps=1,
        **tiny_keys,
    )
    weights = load_file(result.model / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in weights} == {"q_proj", "v_proj"}


def test_prompts_that_leave_nothing_to_train_on_are_refused(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    rows = [{"prompt": "p" * 40, "chosen": "same, then yes", "rejected": "same, then no"}]
    told = refused(UserError, tmp_path / "run", **{**tiny_keys, "data": rows, "max_length": 16})
    assert "chosen equals rejected once cut" in told


@pytest.mark.parametrize("resume", [False, True])
def test_output_that_is_taken_is_refused(
    tmp_path: Path, tiny_keys: dict[str, Any], lora_run: TrainResult, resume: bool
) -> None:
    before = sorted(lora_run.output.rglob("*"))
    (tmp_path / "file").write_text("")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("")
    for output in (lora_run.output, tmp_path / "file", tmp_path / "notes"):
        refused(TrainingError, output, resume=resume, report_to="tensorboard", **tiny_keys)
    assert sorted(lora_run.output.rglob("*")) == before
    assert [file.name for file in (tmp_path / "notes").iterdir()] == ["a.txt"]


def test_fp16_on_a_cpu_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    keys = {"model": "no-such-model", "data": "no-such-data.jsonl", "precision": "fp16"}
    told = refused(ConfigError, tmp_path / "run", **keys)
    assert "precision fp16 needs a GPU; set precision to auto, bf16 or fp32" in told
    assert not (tmp_path / "run").exists()


# Numbers that are not finite


def test_loss_that_is_not_finite_names_the_records(
    tmp_path: Path, tiny_keys: dict[str, Any], tiny_model_dir: Path
) -> None:
    rows = [
        {"prompt": f"Is {i} so?", "chosen": "yes Z" if i == 6 else "yes", "rejected": "no"}
        for i in range(12)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    poisoned = tmp_path / "poisoned"
    shutil.copytree(tiny_model_dir, poisoned)
    weights = load_file(poisoned / "model.safetensors")
    token = load_tokenizer(str(poisoned)).convert_tokens_to_ids("Z")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    keys = {**tiny_keys, "data": data, "model": str(poisoned), "shuffle": False}
    told = refused(TrainingError, tmp_path / "run", **keys)
    assert told.startswith("the loss is not finite at step 2 (records data.jsonl:7)")
    (finding,) = [f for f in lines(tmp_path / "run" / "findings.jsonl") if f["step"]]
    assert (finding["step"], finding["evidence"]) == (2, {"rows": "data.jsonl:7"})
    assert (finding["id"], finding["severity"]) == ("not-finite", "error")
    assert not (tmp_path / "run" / "model").exists()


# Trackers


def test_tensorboard_gets_the_metrics(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = penchant.train("dpo", output=tmp_path / "run", report_to="tensorboard", **tiny_keys)
    (events,) = {
        file.parent
        for file in result.output.rglob("events.out.tfevents.*")
        if "hparams" not in str(file) and file.parent.name == "penchant"
    }
    written = EventAccumulator(str(events))
    written.Reload()
    assert set(written.Tags()["scalars"]) >= STEP_METRICS
    logged = [(event.step, event.value) for event in written.Scalars("loss")]
    assert [step for step, _ in logged] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in logged] == pytest.approx(losses(result), rel=1e-6)


def test_tracker_that_is_not_installed_is_refused_by_name(
    tmp_path: Path, tiny_keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name)
    )
    told = refused(ConfigError, tmp_path / "run", report_to="tensorboard,wandb", **tiny_keys)
    assert "wandb is not installed" in told
    assert "tensorboard" not in told
    assert not (tmp_path / "run").exists()


def test_tracker_that_does_not_start_is_named_and_the_run_can_go_on_without(
    tmp_path: Path, tiny_keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "init_trackers", offline)
        told = refused(TrainingError, tmp_path / "run", report_to="tensorboard", **tiny_keys)
    assert "report_to tensorboard" in told
    assert "ConnectionError: no route to host" in told
    result = penchant.train("dpo", output=tmp_path / "run", resume=True, **tiny_keys)
    assert (result.model / "adapter_model.safetensors").exists()


def test_unknown_tracker_is_refused_by_name(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    told = refused(ConfigError, tmp_path / "run", report_to="tensorbord", **tiny_keys)
    assert "tensorbord" in told
    assert "did you mean tensorboard" in told


def test_own_answers_are_held_against_the_reference_in_nats_per_answer(
    tiny_keys: dict[str, Any],
    tiny_model_dir: Path,
    held_out_file: Path,
    tmp_path: Path,
    load_saved: Callable[[Path], Any],
    tokenised: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By transformers alone: the exact divergence at every token of an answer, summed."""
    from penchant.cli.show import print_result
    from penchant.guards.monitors.monitor import SEED
    from penchant.models.scoring import Scorer
    from penchant.rl.sampling.base import Draw, Sampling
    from penchant.rl.sampling.sampler import CachedSampler

    keys = {**tiny_keys, "eval_data": str(held_out_file), "eval_samples": 5, "max_new_tokens": 6}
    run = penchant.train("dpo", output=tmp_path / "run", **keys)
    model = load_saved(run.model)
    prompts = [pair.prompt for pair in tokenised(held_out_file, tiny_model_dir)][:5]
    ends = [0, 2]  # <|endoftext|> and <|im_end|>
    drawn = CachedSampler(Scorer(model, 0), ends).sample(prompts, Draw(Sampling(6), SEED))
    sums = []
    for prompt, (answer,) in zip(prompts, drawn, strict=True):
        ids = torch.tensor([[*prompt, *answer.ids]])
        with torch.no_grad():
            p = model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
            with model.disable_adapter():
                q = model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        sums.append((p.exp() * (p - q)).sum())
    expected = torch.stack(sums)
    assert run.after is not None and run.after.kl_sequence is not None
    assert run.after.kl_sequence == pytest.approx(float(expected.mean()), rel=1e-3)
    assert run.after.kl_sequence_error == pytest.approx(float(expected.std()) / 5**0.5, rel=1e-3)
    logged = [r for r in lines(run.output / "metrics.jsonl") if "eval/kl/sequence" in r]
    assert [r["step"] for r in logged] == [run.steps]
    print_result(run)
    shown = capsys.readouterr().out
    assert f"own answers: {run.after.kl_sequence:.3g} ± " in shown
    assert f"\npage:  {run.output / 'report.html'}\n" in shown
    assert "nats per answer from the reference" in shown and "the healthy 0.5 to 10" in shown
    for page in ("report.html", "model/README.md"):
        text = (run.output / page).read_text(encoding="utf-8")
        assert "KL of its own answers from the reference" in text
        assert f"{run.after.kl_sequence:.3g} ± " in text
        assert "Held-out KL on given texts, nats per token" in text
