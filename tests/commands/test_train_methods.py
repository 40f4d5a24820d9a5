"""Whole runs of every kind of method: what is learnt, what is saved, what is never loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import penchant
from penchant.core.errors import ConfigError, ModelError, UserError
from penchant.data.records import DataError
from penchant.models.scoring import Scorer
from penchant.training import kind_scores, kinds, reference_models
from penchant.training.result import TrainResult
from penchant.training.step import Step


def steps(result: TrainResult) -> list[dict[str, Any]]:
    text = (result.output / "metrics.jsonl").read_text(encoding="utf-8")
    return [record for record in map(json.loads, text.splitlines()) if "loss" in record]


def summary(result: TrainResult) -> dict[str, Any]:
    return json.loads((result.output / "summary.json").read_text(encoding="utf-8"))


Train = Callable[..., TrainResult]
TWICE = {"per_device_train_batch_size": 8}  # labels are twice as many as pairs
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "kto": ("kto", {"data": "labels", "eval_data": "held-out labels", **TWICE}),
    "kto unpaired": ("kto", {"unpair": True, **TWICE}),
    "kto full": ("kto", {"unpair": True, "lora_r": 0, "learning_rate": 1e-3, **TWICE}),
    "orpo": ("orpo", {}),
    "simpo": ("simpo", {}),
    "cpo": ("cpo", {}),
    "reward": ("reward", {}),
    "reward full": ("reward", {"lora_r": 0, "learning_rate": 1e-3}),
}
WITHOUT_REFERENCE = [name for name in RUNS if not name.startswith("kto")]


@pytest.fixture(scope="module")
def run_of(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_keys: dict[str, Any],
    held_out_file: Path,
    as_labels: Callable[[Path], Path],
) -> Callable[[str], TrainResult]:
    """Five epochs of one of `RUNS`, trained when it is first asked for."""
    files = {
        "labels": as_labels(Path(tiny_keys["data"])),
        "held-out labels": as_labels(held_out_file),
    }
    done: dict[str, TrainResult] = {}

    def run(name: str) -> TrainResult:
        if name not in done:
            method, changes = RUNS[name]
            keys = {**tiny_keys, "eval_data": held_out_file, "num_train_epochs": 5, **changes}
            keys |= {key: str(files.get(keys[key], keys[key])) for key in ("data", "eval_data")}
            output = tmp_path_factory.mktemp("run") / name.replace(" ", "-")
            done[name] = penchant.train(method, output=output, **keys)
        return done[name]

    return run


# What is learnt


@pytest.mark.parametrize("name", RUNS)
def test_loss_falls_and_held_out_preferences_are_learnt(
    name: str, run_of: Callable[[str], TrainResult]
) -> None:
    result = run_of(name)
    losses = [record["loss"] for record in steps(result)]
    assert sum(losses[-6:]) < 0.95 * sum(losses[:6])
    assert result.before is not None
    assert result.after is not None
    assert result.after.loss < result.before.loss
    assert result.after.accuracy >= max(result.before.accuracy, 0.6)
    # Neither of the two was first by chance: the distance between them grows.
    assert result.after.margin > result.before.margin + 0.01
    if RUNS[name][0] == "reward":
        assert result.after.accuracy == 1
        assert result.after.calibration_error is not None
        assert result.before.logprob_chosen is None
    else:
        assert result.after.logprob_chosen is not None
        assert result.after.logprob_chosen - result.after.logprob_rejected > (  # type: ignore[operator]
            result.before.logprob_chosen - result.before.logprob_rejected  # type: ignore[operator]
        )


def test_labels_in_a_file_train_like_the_pairs_they_were_taken_from(
    run_of: Callable[[str], TrainResult],
) -> None:
    from_file, unpaired = (steps(run_of(name)) for name in ("kto", "kto unpaired"))
    assert [record["loss"] for record in from_file] == [record["loss"] for record in unpaired]
    assert run_of("kto").after == run_of("kto unpaired").after
    assert summary(run_of("kto"))["tokenising"]["training"]["num_examples"] == 48


@pytest.mark.parametrize("name", ["kto", "orpo", "simpo", "cpo"])
def test_language_model_folder_loads_without_penchant_and_scores_as_the_run_ended(
    name: str,
    run_of: Callable[[str], TrainResult],
    held_out_file: Path,
    tokenised: Callable[..., Any],
    load_saved: Callable[[Path], Any],
    plain_logprobs: Callable[..., Any],
) -> None:
    result = run_of(name)
    groups = [pair.group() for pair in tokenised(held_out_file, result.model)]
    with torch.no_grad():
        tokens = plain_logprobs(load_saved(result.model), groups)
    lengths = [len(c) for group in groups for c in group.completions]
    sums = [part.sum().item() for part in tokens.split(lengths)]
    assert result.after is not None
    assert sum(sums[::2]) / 8 == pytest.approx(result.after.logprob_chosen, abs=1e-4)
    assert sum(sums[1::2]) / 8 == pytest.approx(result.after.logprob_rejected, abs=1e-4)


# Reward models


def scores_of(model: Any, groups: Any) -> torch.Tensor:
    """`[pairs, 2]`, one text at a time."""
    rows = [[*group.prompt, *c] for group in groups for c in group.completions]
    with torch.no_grad():
        scores = [model(input_ids=torch.tensor([row])).logits.item() for row in rows]
    return torch.tensor(scores).view(-1, 2)


@pytest.mark.parametrize("name", ["reward", "reward full"])
def test_reward_model_folder_loads_without_penchant_and_gives_the_same_scores(
    name: str,
    run_of: Callable[[str], TrainResult],
    held_out_file: Path,
    tokenised: Callable[..., Any],
    load_saved: Callable[[Path], Any],
) -> None:
    result = run_of(name)
    groups = [pair.group() for pair in tokenised(held_out_file, result.model)]
    model = load_saved(result.model)
    scores = scores_of(model, groups)
    assert result.after is not None
    assert scores[:, 0].mean().item() == pytest.approx(result.after.reward_chosen, abs=1e-5)
    assert scores[:, 1].mean().item() == pytest.approx(result.after.reward_rejected, abs=1e-5)
    assert scores.std(correction=0).item() == pytest.approx(result.after.score_std, abs=1e-5)
    # A user's batch is padded: the model knows by what.
    rows = [[*group.prompt, *c] for group in groups for c in group.completions]
    width, pad = max(map(len, rows)), model.config.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        batched = model(input_ids=ids, attention_mask=mask).logits.view(-1, 2)
    torch.testing.assert_close(batched, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["reward", "reward full"])
def test_reward_statistics_are_those_of_the_training_completions(
    name: str,
    run_of: Callable[[str], TrainResult],
    training_file: Path,
    tokenised: Callable[..., Any],
    load_saved: Callable[[Path], Any],
) -> None:
    result = run_of(name)
    found = json.loads((result.model / "reward_statistics.json").read_text())
    groups = [pair.group() for pair in tokenised(training_file, result.model)]
    scores = scores_of(load_saved(result.model), groups)
    assert found["num"] == 48
    assert found["mean"] == pytest.approx(scores.mean().item(), abs=1e-5)
    assert found["std"] == pytest.approx(scores.std(correction=0).item(), abs=1e-5)


@pytest.mark.parametrize("name", ["reward", "reward full"])
def test_reward_run_evaluates_to_the_numbers_it_ended_with(
    name: str, run_of: Callable[[str], TrainResult], held_out_file: Path
) -> None:
    result = run_of(name)
    for model in (result.output, result.model):
        found = penchant.evaluate(model=model, data=held_out_file)
        assert result.after is not None
        assert vars(found) == pytest.approx(vars(result.after), abs=1e-5)


def test_reward_model_can_be_trained_further(
    tmp_path: Path,
    tiny_keys: dict[str, Any],
    held_out_file: Path,
    run_of: Callable[[str], TrainResult],
    load_saved: Callable[[Path], Any],
) -> None:
    before = run_of("reward")
    keys = {**tiny_keys, "model": str(before.output), "eval_data": str(held_out_file)}
    result = penchant.train("reward", output=tmp_path / "run", max_steps=1, **keys)
    assert before.after is not None
    assert result.before is not None
    assert result.before.margin == pytest.approx(before.after.margin, rel=1e-4)
    # One folder holds all of it: an adapter's adapter could be loaded by nobody.
    assert load_saved(result.model).config.num_labels == 1


def test_new_score_head_depends_on_the_seed_alone(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    losses = [
        steps(penchant.train("reward", output=tmp_path / str(i), seed=seed, max_steps=1,
                             shuffle=False, **tiny_keys))[0]["loss"]
        for i, seed in enumerate((0, 0, 1))
    ]  # fmt: skip
    assert losses[0] == losses[1] != losses[2]


def test_margins_of_the_data_are_learnt_where_they_are_asked_for(
    tmp_path: Path, tiny_keys: dict[str, Any], training_file: Path
) -> None:
    rows = [json.loads(line) for line in training_file.read_text().splitlines()]
    stated = [{**row, "margin": 3.0} for row in rows]
    keys = {**tiny_keys, "data": stated, "max_steps": 1}
    with_margins, without = (
        steps(penchant.train("reward", output=tmp_path / str(used), use_margins=used, **keys))[0]
        for used in (True, False)
    )
    # -log sigmoid(-3), the scores being next to equal
    assert with_margins["loss"] == pytest.approx(3.0486, abs=0.02)
    assert without["loss"] == pytest.approx(0.6931, abs=0.02)


# No reference where none is needed


@pytest.mark.parametrize("method", ["orpo", "simpo", "cpo", "reward"])
def test_method_without_a_reference_makes_one_pass_a_micro_batch_and_loads_one_model(
    method: str, tmp_path: Path, tiny_keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards: list[int] = []
    passes: list[int] = []
    loaded: list[str] = []
    references: list[Any] = []
    call, step, source = Scorer.__call__, Step.take, kinds.Pairs.source

    def counted(scorer: Scorer, *given: Any, **named: Any) -> Any:
        forwards.append(1)
        return call(scorer, *given, **named)

    def counting(taker: Step, batch: Any, *rest: Any) -> Any:
        forwards.clear()
        metrics = step(taker, batch, *rest)
        passes.append(len(forwards))
        return metrics

    def noted(kind: kinds.Pairs, config: Any, accelerator: Any, setup: Any, run: Any) -> Any:
        references.append(setup.reference)
        return source(kind, config, accelerator, setup, run)

    def noting(load: Callable[..., Any]) -> Callable[..., Any]:
        def note(name: str, **named: Any) -> Any:
            loaded.append(name)
            return load(name, **named)

        return note

    monkeypatch.setattr(Scorer, "__call__", counted)
    monkeypatch.setattr(Step, "take", counting)
    monkeypatch.setattr(kinds.Pairs, "source", noted)
    for kind in (kinds.Pairs, kind_scores.Scores):
        monkeypatch.setattr(kind, "load_model", staticmethod(noting(kind.load_model)))
    for name in ("load_causal_model", "frozen_copy", "CachedReference"):
        monkeypatch.setattr(reference_models, name, None)  # to call it would be an error
    keys = {**tiny_keys, "gradient_accumulation_steps": 3, "lora_r": 0}
    result = penchant.train(method, output=tmp_path / "run", **keys)
    assert passes == [3, 3]  # 24 pairs, 4 a pass
    assert loaded == [tiny_keys["model"]]
    assert references == [None]
    assert summary(result)["reference"] is None


@pytest.mark.parametrize("name", WITHOUT_REFERENCE)
def test_run_without_a_reference_reports_none_and_no_kl(
    name: str, run_of: Callable[[str], TrainResult]
) -> None:
    result = run_of(name)
    assert summary(result)["reference"] is None
    assert result.after is not None
    assert result.after.kl is result.after.entropy is None


def test_run_without_a_reference_is_compared_with_one_that_is_named(
    run_of: Callable[[str], TrainResult], held_out_file: Path, tiny_model_dir: Path
) -> None:
    result = run_of("simpo")
    alone = penchant.evaluate(model=result.output, data=held_out_file)
    compared = penchant.evaluate(model=result.output, data=held_out_file, reference=tiny_model_dir)
    assert result.after is not None
    assert alone.margin == pytest.approx(result.after.margin, abs=1e-5)
    assert compared.margin == pytest.approx(alone.margin, abs=1e-5)
    assert alone.kl is None
    assert compared.kl is not None
    assert compared.kl > 1e-3


def test_run_on_labels_is_evaluated_on_labels_and_on_pairs_alike(
    run_of: Callable[[str], TrainResult], held_out_file: Path, as_labels: Callable[[Path], Path]
) -> None:
    result = run_of("kto")
    for data in (held_out_file, as_labels(held_out_file)):
        found = penchant.evaluate(model=result.output, data=data)
        assert result.after is not None
        assert result.after.kl_sequence is not None  # of answers, which evaluate samples none of
        after = replace(result.after, kl_sequence=None, kl_sequence_error=None)
        assert vars(found) == pytest.approx(vars(after), abs=1e-5)


# What is refused


def refused(error: type[UserError], method: str, output: Path, **keys: Any) -> str:
    with pytest.raises(error) as caught:
        penchant.train(method, output=output, **keys)
    return str(caught.value)


def test_step_of_one_example_is_refused_for_kto(tmp_path: Path, tiny_keys: dict[str, Any]) -> None:
    keys = {**tiny_keys, "unpair": True, "per_device_train_batch_size": 1}
    told = refused(ConfigError, "kto", tmp_path / "run", **keys)
    assert "a step of one has none" in told
    assert "raise per_device_train_batch_size or gradient_accumulation_steps" in told
    penchant.train(
        "kto", output=tmp_path / "apo", loss_type="apo_zero_unpaired", max_steps=1, **keys
    )
    keys["gradient_accumulation_steps"] = 2
    penchant.train("kto", output=tmp_path / "two", max_steps=1, **keys)


def test_data_of_one_prompt_is_refused_for_kto(
    tmp_path: Path, tiny_keys: dict[str, Any], run_of: Callable[[str], TrainResult]
) -> None:
    rows = [{"prompt": "p", "completion": f"yes {i}", "label": i > 2} for i in range(6)]
    told = refused(ConfigError, "kto", tmp_path / "run", **{**tiny_keys, "data": rows})
    assert "all records have the same prompt; add records with other prompts" in told
    with pytest.raises(ConfigError, match="all records have the same prompt"):
        penchant.evaluate(model=run_of("kto").output, data=rows)
    penchant.train(
        "kto", output=tmp_path / "apo", loss_type="apo_zero_unpaired",
        **{**tiny_keys, "data": rows, "max_steps": 1},
    )  # fmt: skip


def test_held_out_labels_of_one_prompt_are_no_obstacle(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    rows = [{"prompt": "p", "completion": f"yes {i}", "label": i > 1} for i in range(4)]
    keys = {**tiny_keys, "unpair": True, "eval_data": rows, "max_steps": 1}
    result = penchant.train("kto", output=tmp_path / "run", **keys)
    assert result.after is not None
    assert result.after.num_examples == 4


def test_pairs_are_refused_for_kto_with_the_remedy(
    tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    assert "unpair" in refused(DataError, "kto", tmp_path / "run", **tiny_keys)


def test_record_without_a_margin_is_refused_where_margins_are_learnt(
    tmp_path: Path, tiny_keys: dict[str, Any], held_out_file: Path
) -> None:
    told = refused(ConfigError, "reward", tmp_path / "run", use_margins=True, **tiny_keys)
    assert "training.jsonl:1 has none" in told
    assert "drop use_margins" in told
    rows = [json.loads(line) for line in held_out_file.read_text().splitlines()]
    stated = [{**row, "margin": 1.0} for row in rows]
    keys = {**tiny_keys, "data": stated, "use_margins": True, "max_steps": 1}
    result = penchant.train("reward", output=tmp_path / "stated", **keys)
    with pytest.raises(ConfigError, match="use_margins needs a margin in every record"):
        penchant.evaluate(model=result.output, data=held_out_file)
    found = penchant.evaluate(model=result.output, data=held_out_file, use_margins=False)
    assert found.num_examples == 8


@pytest.mark.parametrize("name", ["reward", "reward full"])
def test_reward_model_given_to_a_method_for_language_models_is_refused(
    name: str,
    tmp_path: Path,
    tiny_keys: dict[str, Any],
    held_out_file: Path,
    run_of: Callable[[str], TrainResult],
) -> None:
    keys = {**tiny_keys, "model": str(run_of(name).model)}
    assert "give a causal language model" in refused(ModelError, "dpo", tmp_path / "run", **keys)
    with pytest.raises(ModelError, match="give a causal language model"):
        penchant.evaluate(model=run_of(name).output, data=held_out_file, method="dpo")


def test_reward_model_given_as_the_reference_is_refused(
    tmp_path: Path, tiny_keys: dict[str, Any], run_of: Callable[[str], TrainResult]
) -> None:
    keys = {**tiny_keys, "reference_model": str(run_of("reward full").model)}
    assert "give a causal language model" in refused(ModelError, "dpo", tmp_path / "run", **keys)


def test_classifier_of_several_labels_is_refused_as_a_reward_model(
    tmp_path: Path, tiny_keys: dict[str, Any], classifier: Callable[[int], str]
) -> None:
    keys = {**tiny_keys, "model": classifier(3)}
    told = refused(ModelError, "reward", tmp_path / "run", **keys)
    assert "has 3 labels; a reward model has one, the score" in told
