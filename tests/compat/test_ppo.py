"""Scripts that own their PPO loop, as TRL's of 2024 did: the same numbers, and no silent traps."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from penchant.compat.trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from penchant.core.errors import ConfigError, ModelError, TrainingError, UserError

Model = AutoModelForCausalLMWithValueHead
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)


@pytest.fixture
def make(tiny_model_dir: Path, tokenizer: Any) -> Any:
    """A trainer on the tiny model, always from the same weights."""

    def make(peft_config: Any = None, dtype: Any = None, **arguments: Any) -> PPOTrainer:
        torch.manual_seed(7)
        model = Model.from_pretrained(tiny_model_dir, peft_config=peft_config, torch_dtype=dtype)
        own = {"ref_model", "optimizer", "lr_scheduler", "dataset", "data_collator"}
        objects = {name: arguments.pop(name) for name in own & arguments.keys()}
        defaults = {"batch_size": 4, "mini_batch_size": 2, "learning_rate": 1e-2, "ppo_epochs": 2}
        config = PPOConfig(**{**defaults, **arguments})
        return PPOTrainer(config, model, tokenizer=tokenizer, **objects)

    return make


@pytest.fixture
def batch() -> dict[str, Any]:
    return {
        "queries": [torch.tensor(q) for q in ([5, 6, 7], [8, 9], [10, 11, 12, 13], [14])],
        "responses": [torch.tensor(r) for r in ([20, 21, 2], [22, 2], [23, 24, 25, 26], [27])],
        "scores": [torch.tensor(s) for s in (1.0, -0.5, 0.3, 2.0)],
    }


def step(trainer: PPOTrainer, batch: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return trainer.step(**{**batch, **changes})


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def same_step(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-5) -> bool:
    names = [n for n, v in one.items() if isinstance(v, float) and not n.startswith("time/")]
    assert names
    return all(one[n] == pytest.approx(other[n], abs=tolerance, rel=tolerance) for n in names)


def pad(rows: list[torch.Tensor], value: int, side: str) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=value, padding_side=side
    )


# The golden traces


@pytest.mark.parametrize("number", range(6))
def test_step_is_the_golden_one(shared: Path, tokenizer: Any, number: int) -> None:
    folder = shared / "golden" / "ppo"
    trace = json.loads((folder / "traces.json").read_text())
    case = trace["cases"][number]
    model = Model.from_pretrained(folder / "policy")
    model.v_head.summary.weight.data = torch.tensor(trace["value_head"]["weight"])
    model.v_head.summary.bias.data = torch.tensor([trace["value_head"]["bias"]]).flatten()
    config = PPOConfig(batch_size=8, mini_batch_size=8, learning_rate=1e-3, **case["config"])
    trainer = PPOTrainer(config, model, Model.from_pretrained(folder / "reference"), tokenizer)
    stats = trainer.step(
        *([torch.tensor(row) for row in trace[name]] for name in ("queries", "responses", "scores"))
    )
    for ours, theirs in {
        "objective/logprobs": "logprobs",
        "objective/ref_logprobs": "ref_logprobs",
    }.items():
        for row, expected, response in zip(
            stats[ours], case[theirs], trace["responses"], strict=True
        ):
            if isinstance(expected[0], list):  # with kl_penalty full: whole distributions
                expected = [one[token] for one, token in zip(expected, response, strict=True)]
            assert row[: len(expected)] == pytest.approx(expected, abs=1e-4)
    per_token = sorted(value for row in case["advantages"] for value in row) * 4
    assert sorted(stats["ppo/policy/advantages"]) == pytest.approx(sorted(per_token), abs=1e-4)
    assert stats["objective/kl"] == pytest.approx(case["objective_kl"], abs=1e-4)
    divergences = [sum(row) for row in case["kl_per_token"]]
    assert list(stats["objective/kl_dist"]) == pytest.approx(divergences, abs=1e-4)
    returns = torch.tensor([value for row in case["returns"] for value in row])
    values = torch.tensor([value for row in case["values"] for value in row])
    expected = {
        "ppo/returns/mean": returns.mean(),
        "ppo/returns/var": returns.var(),
        "ppo/val/mean": values.mean(),
        "ppo/val/var": values.var(),
        "objective/kl_coef": case["config"]["init_kl_coef"],
    }
    for name in case["updates"][0]:
        expected[f"ppo/{name}"] = sum(one[name] for one in case["updates"]) / 4
    for name, value in expected.items():
        # Of 66 tokens one may stand on the edge of its clip range, in one of four epochs.
        tolerance = 1.01 / 66 / 4 if "clipfrac" in name else 1e-4
        assert stats[name] == pytest.approx(float(value), abs=tolerance), name
    assert trainer.kl_ctl.value == pytest.approx(case["kl_coef_after"], abs=1e-7)
    after = [log_probs(model, q, r) for q, r in zip(trace["queries"], trace["responses"],
                                                     strict=True)]  # fmt: skip
    assert [a[0] for a in after] == pytest.approx(
        [c["logprob_sum"] for c in case["after"]], abs=1e-3
    )
    assert [a[1] for a in after] == pytest.approx([c["value_sum"] for c in case["after"]], abs=1e-3)


@torch.no_grad()
def log_probs(model: Model, query: list[int], response: list[int]) -> tuple[float, float]:
    """By the model's own forward."""
    ids = torch.tensor([[*query, *response]])
    logits, loss, values = model(input_ids=ids)
    assert loss is None
    predicted = slice(len(query) - 1, len(query) + len(response) - 1)
    every = logits[0, predicted].log_softmax(-1)
    taken = every.gather(1, torch.tensor(response).unsqueeze(1))
    return float(taken.sum()), float(values[0, predicted].sum())


# The loop as it was written


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_loop_of_2024_runs_with_another_import_and_model(
    tiny_model_dir: Path, dtype: torch.dtype
) -> None:
    name = str(tiny_model_dir)
    config = PPOConfig(
        model_name=name,
        learning_rate=1e-5,
        batch_size=8,
        mini_batch_size=4,
        ppo_epochs=4,
        kl_penalty="kl",  # "kl", "abs", or "mse"
        init_kl_coef=0.2,
        target_kl=6.0,  # adaptive KL -- increases coef if KL exceeds this
        cliprange=0.2,
        vf_coef=0.1,
    )
    model = AutoModelForCausalLMWithValueHead.from_pretrained(name, torch_dtype=dtype)
    ref_model = AutoModelForCausalLMWithValueHead.from_pretrained(name, torch_dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.eos_token

    ppo_trainer = PPOTrainer(config, model, ref_model, tokenizer)

    dataloader = [{"prompt": [f"Say {'so ' * (i + j)}" for i in range(8)]} for j in range(2)]

    class reward_model:  # noqa: N801
        @staticmethod
        def score(query: str, response: str) -> float:
            return float(len(response)) / 10

    before = weights(ppo_trainer)
    for number, batch in enumerate(dataloader):
        query_tensors = tokenizer(batch["prompt"], return_tensors="pt", padding=True).input_ids
        response_tensors = ppo_trainer.generate(query_tensors, max_new_tokens=12)
        response_text = tokenizer.batch_decode(response_tensors, skip_special_tokens=True)
        rewards = [
            reward_model.score(q, r) for q, r in zip(batch["prompt"], response_text, strict=True)
        ]
        rewards = [torch.tensor(r, dtype=torch.float32) for r in rewards]
        stats = ppo_trainer.step(query_tensors, response_tensors, rewards)
        ppo_trainer.log_stats(stats, batch, rewards)
        if number == 0:  # policy and reference are the same model, rounded alike
            assert stats["objective/kl"] == pytest.approx(0.0, abs=1e-3)
    assert response_tensors.shape[0] == 8
    assert ppo_trainer.kl_ctl.target == 6.0
    assert stats["ppo/mean_scores"] == pytest.approx(float(torch.stack(rewards).mean()), abs=1e-6)
    after = weights(ppo_trainer)
    assert any(not torch.equal(before[n], after[n]) for n in before)
    assert all(p.dtype == torch.float32 for n, p in after.items())


def test_steps_raise_the_score_of_what_is_rewarded(make: Any) -> None:
    trainer = make(batch_size=32, mini_batch_size=16, ppo_epochs=4, init_kl_coef=0.02)
    queries = [torch.tensor([5, 6, 7 + i % 4]) for i in range(32)]
    means = []
    for _ in range(16):
        responses = trainer.generate(queries, max_new_tokens=8, do_sample=True, top_k=0)
        scores = [(r >= 130).float().mean() for r in responses]
        means.append(trainer.step(queries, responses, scores)["ppo/mean_scores"])
    assert sum(means[-3:]) / 3 > means[0] + 0.3, means


def test_out_of_memory_ends_with_what_to_set(
    make: Any, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    trainer = make()
    monkeypatch.setattr("penchant.compat.trl.ppo.generation.answer", fail)
    with pytest.raises(TrainingError, match="3 GiB; set a lower batch_size or max_new_tokens"):
        trainer.generate(batch["queries"])
    monkeypatch.setattr(type(trainer._learner._step), "take", fail)
    with pytest.raises(TrainingError, match="3 GiB; lower mini_batch_size, raise gradient_acc"):
        step(trainer, batch)


# Forms of the same batch


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_tensor_and_a_list_give_the_same_step(
    make: Any, batch: dict[str, Any], tokenizer: Any, side: str
) -> None:
    expected = step(make(), batch)
    queries = pad(batch["queries"], tokenizer.pad_token_id, side)
    responses = pad(batch["responses"], tokenizer.pad_token_id, "right")
    found = step(make(), batch, queries=queries, responses=responses)
    assert same_step(expected, found)


def test_where_the_pad_token_is_the_end_token_one_of_them_is_the_end(
    make: Any, batch: dict[str, Any], tokenizer: Any
) -> None:
    assert tokenizer.eos_token_id == 2
    tokenizer.pad_token = tokenizer.eos_token
    batch["responses"][3] = torch.tensor([27, 2])
    expected = step(make(), batch)
    queries, responses = pad(batch["queries"], 2, "left"), pad(batch["responses"], 2, "right")
    assert same_step(expected, step(make(), batch, queries=queries, responses=responses))


def test_mini_batches_of_accumulation_come_to_one_step(make: Any, batch: dict[str, Any]) -> None:
    batch["responses"] = [torch.tensor([20 + i, 21, 2]) for i in range(4)]  # of one length
    whole = make(mini_batch_size=4, ppo_epochs=1)
    parts = make(mini_batch_size=1, gradient_accumulation_steps=4, ppo_epochs=1)
    one, other = step(whole, batch), step(parts, batch)
    assert one["ppo/loss/total"] == pytest.approx(other["ppo/loss/total"], abs=1e-6)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weight, weights(parts)[name], rtol=0, atol=1e-4)


def test_masked_tokens_are_context_and_nothing_else(make: Any, batch: dict[str, Any]) -> None:
    ones = [torch.ones_like(r) for r in batch["responses"]]
    expected = step(make(), batch)
    assert same_step(expected, step(make(), batch, response_masks=ones))
    # A masked tail changes nothing; neither does the length of what is not learned from.
    longer = [torch.cat([r, torch.tensor([40, 41])]) for r in batch["responses"]]
    masks = [torch.cat([m, torch.zeros(2, dtype=m.dtype)]) for m in ones]
    found = step(make(), batch, responses=longer, response_masks=masks)
    for name in ("ppo/loss/total", "objective/kl", "objective/entropy", "ppo/returns/mean"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5)
    masks[0][1] = 0
    inner = step(make(), batch, responses=longer, response_masks=masks)
    assert len(inner["ppo/policy/ratio"]) == len(found["ppo/policy/ratio"]) - 2  # two epochs


# Adapters and references


def test_an_adapter_switched_off_is_the_reference(make: Any, batch: dict[str, Any]) -> None:
    trainer = make(LORA)
    before = weights(trainer)
    assert step(trainer, batch)["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    after = weights(trainer)
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed and all("lora_" in n or n.startswith("v_head") for n in changed)
    assert trainer.ref_model is None
    assert step(trainer, batch)["objective/kl"] != pytest.approx(0.0, abs=1e-3)


def test_an_adapter_that_changes_its_base_needs_a_reference(
    make: Any, batch: dict[str, Any], tiny_model_dir: Path
) -> None:
    pissa = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa")
    with pytest.raises(ConfigError, match="not the one that training starts from; pass that model"):
        make(pissa)
    trainer = make(pissa, ref_model=AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    assert step(trainer, batch)["objective/kl"] == pytest.approx(0.0, abs=1e-3)


def test_the_copy_that_is_made_stays_as_it_was(make: Any, batch: dict[str, Any]) -> None:
    trainer = make()
    first = step(trainer, batch)
    second = step(trainer, batch)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert (second["objective/ref_logprobs"] == first["objective/ref_logprobs"]).all()
    assert abs(second["objective/kl"]) > 1e-3


@pytest.mark.parametrize("passed", [False, True])
def test_a_reference_beside_bf16_arithmetic_is_held_in_bf16_and_is_the_policy(
    passed: bool, make: Any, batch: dict[str, Any], tiny_model_dir: Path
) -> None:
    """Its matrices: the arithmetic would round them in every pass."""
    given = Model.from_pretrained(tiny_model_dir, torch_dtype=torch.bfloat16) if passed else None
    trainer = make(dtype=torch.bfloat16, ref_model=given)
    stats = step(trainer, batch)
    assert (stats["objective/logprobs"] == stats["objective/ref_logprobs"]).all()
    layer = trainer.ref_model.model.layers[0]
    assert layer.mlp.up_proj.weight.dtype == torch.bfloat16
    assert layer.input_layernorm.weight.dtype == torch.float32
    assert trainer.model.pretrained_model.dtype == torch.float32


def test_a_reference_that_is_passed_is_used_beside_an_adapter_too(
    make: Any, batch: dict[str, Any], tiny_model_dir: Path
) -> None:
    torch.manual_seed(1)
    other = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    other.lm_head.weight.data += torch.randn_like(other.lm_head.weight) / 10
    for reference in (other, Model(other)):
        trainer = make(LORA, ref_model=reference)
        stats = step(trainer, batch)
        assert trainer.ref_model is other
        expected = [
            log_probs(Model(other), q.tolist(), r.tolist())[0]
            for q, r in zip(batch["queries"], batch["responses"], strict=True)
        ]
        assert list(stats["objective/ref_logprobs"].sum(1)) == pytest.approx(expected, abs=1e-3)


def test_a_reference_of_other_tokens_is_refused(
    make: Any, make_model: Any, tiny_model_dir: Path
) -> None:
    with pytest.raises(ModelError, match="vocabulary of 97"):
        make(ref_model=make_model("llama"))


def test_one_model_cannot_be_both(tiny_model_dir: Path, tokenizer: Any) -> None:
    model = Model.from_pretrained(tiny_model_dir)
    config = PPOConfig(batch_size=2, mini_batch_size=1)
    with pytest.raises(ConfigError, match="drop ref_model"):
        PPOTrainer(config, model, model, tokenizer)


# Generation


def test_generated_log_probs_are_of_the_distribution_that_was_sampled(make: Any) -> None:
    trainer = make()
    queries = [torch.tensor([5 + i, 6]) for i in range(4)]
    settings = {"do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 0.9}
    responses = trainer.generate(queries, max_new_tokens=6, min_length=-1, **settings)
    stats = trainer.step(queries, responses, [0.1, 0.2, 0.3, 0.4])
    model = AutoModelForCausalLM.from_pretrained(trainer.tokenizer.name_or_path)
    for query, response, found in zip(queries, responses, stats["objective/logprobs"], strict=True):
        with torch.no_grad():
            logits = model(torch.cat([query, response]).unsqueeze(0)).logits[0, 1:-1] / 0.5
        kept = logits.masked_fill(logits < logits.topk(7).values[:, -1:], -torch.inf)
        ordered, order = kept.sort(descending=True)
        behind = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1) >= 0.9
        kept = kept.masked_fill(torch.zeros_like(behind).scatter(1, order, behind), -torch.inf)
        expected = kept.log_softmax(-1).gather(1, response.unsqueeze(1)).flatten()
        assert found[: len(response)] == pytest.approx(expected.numpy(), abs=1e-4)
    assert stats["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    trainer.generate(queries, max_new_tokens=2, do_sample=True)  # transformers' top_k is 50
    assert (trainer.policy.temperature, trainer.policy.top_k) == (1.0, 50)


def test_responses_have_the_form_of_the_queries(make: Any, tokenizer: Any) -> None:
    trainer = make()
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    settings = {"max_new_tokens": 5, "do_sample": False}
    alone = trainer.generate(rows, **settings)
    assert [type(one) for one in alone] == [torch.Tensor] * 2 and alone[0].dim() == 1
    queries = pad(rows, tokenizer.pad_token_id, "left")
    together = trainer.generate(queries, **settings)
    assert together.shape == (2, max(map(len, alone)))
    for row, one in zip(together, alone, strict=True):
        assert row[: len(one)].equal(one) and (row[len(one) :] == tokenizer.pad_token_id).all()
    assert trainer.generate(rows[0], **settings).equal(alone[0].unsqueeze(0))
    with_prompt = trainer.generate(rows, return_prompt=True, **settings)
    assert with_prompt[1].equal(torch.cat([rows[1], alone[1]]))
    assert trainer.generate(queries, return_prompt=True, **settings).shape[1] == 3 + 5


def test_what_only_transformers_can_serve_gives_the_same_form(
    make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make()
    monkeypatch.setattr(logging.getLogger("penchant"), "propagate", True)
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    plain = trainer.generate(rows, max_new_tokens=5, num_beams=1, top_k=0.0, pad_token_id=0)
    assert "pass do_sample=True" in caplog.text and "changes what" not in caplog.text
    stopped = trainer.generate(rows, max_length=8, stopping_criteria=None)
    assert stopped[0].equal(plain[0])
    trainer.generate(rows, max_new_tokens=5, repetition_penalty=1.3)
    assert "repetition_penalty changes what is sampled" in caplog.text


def test_the_reference_answers_beside(make: Any, batch: dict[str, Any]) -> None:
    for peft_config in (None, LORA):
        trainer = make(peft_config)
        settings = {"max_new_tokens": 8, "generate_ref_response": True}
        ours, theirs = trainer.generate(batch["queries"], **settings)
        assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))
        for _ in range(5):
            step(trainer, batch)
        ours, again = trainer.generate(batch["queries"], **settings)
        assert all(a.equal(b) for a, b in zip(theirs, again, strict=True))
        assert not all(len(a) == len(b) and a.equal(b) for a, b in zip(ours, theirs, strict=True))


def test_lengths_can_be_drawn(make: Any) -> None:
    lengths = iter([2, 4])
    found = make().generate(
        [torch.tensor([5])] * 4, length_sampler=lambda: next(lengths), batch_size=2, eos_token_id=-1
    )
    assert [len(one) for one in found] == [2, 2, 4, 4]


# The configuration


def test_the_two_targets() -> None:
    assert PPOConfig().adaptive_target == 6.0
    assert PPOConfig(target_kl=3.0).adaptive_target == 3.0
    both = PPOConfig(target=4.0, target_kl=0.1, early_stopping=True)
    assert (both.adaptive_target, both.stopping_kl) == (4.0, 0.1)
    stopping = PPOConfig(target_kl=0.1, early_stopping=True)
    assert (stopping.adaptive_target, stopping.stopping_kl) == (6.0, 0.1)
    assert PPOConfig().stopping_kl is None


def test_early_stopping_ends_the_epochs(make: Any, batch: dict[str, Any]) -> None:
    epochs = {"ppo_epochs": 8, "mini_batch_size": 4, "learning_rate": 0.05}
    tokens = sum(map(len, batch["responses"]))
    full = step(make(**epochs), batch)
    stopped = step(make(**epochs, early_stopping=True, target_kl=1e-3), batch)
    assert len(full["ppo/policy/ratio"]) == 8 * tokens
    assert len(stopped["ppo/policy/ratio"]) < 8 * tokens


def test_scores_are_scaled_shifted_and_clipped(make: Any, batch: dict[str, Any]) -> None:
    scores = torch.stack(batch["scores"])
    scaled = step(make(use_score_scaling=True), batch)
    assert scaled["ppo/mean_scores"] == pytest.approx(float((scores / scores.std()).mean()))
    trainer = make(use_score_scaling=True, use_score_norm=True)
    assert step(trainer, batch)["ppo/mean_scores"] == pytest.approx(0.0, abs=1e-6)
    more = [score + 1 for score in batch["scores"]]
    everything = torch.cat([scores, torch.stack(more)])
    expected = (scores + 1 - everything.mean()) / everything.std()
    found = step(trainer, batch, scores=more)["ppo/mean_scores"]
    assert found == pytest.approx(float(expected.mean()), abs=1e-5)
    clipped = step(make(score_clip=0.4), batch)
    assert clipped["ppo/mean_scores"] == pytest.approx(float(scores.clip(-0.4, 0.4).mean()))


def test_a_mini_batch_far_from_its_sampler_teaches_nothing(
    make: Any, batch: dict[str, Any]
) -> None:
    trainer = make(ppo_epochs=3, mini_batch_size=4, learning_rate=0.5, ratio_threshold=1.0001,
                   cliprange=5.0)  # fmt: skip
    losses: list[float] = []
    steps = trainer._learner._step
    take = steps.take

    def noted(one: Any) -> Any:
        found = take(one)
        losses.append(found["loss"])
        return found

    steps.take = noted  # type: ignore[method-assign]
    step(trainer, batch)
    ratios = list(trainer._learner._passes.ratios)
    for loss, ratio in zip(losses, ratios, strict=True):
        assert (loss == 0.0) == (float(ratio.mean()) > 1.0001)
    assert 0.0 in losses


def test_gradients_are_clipped_only_where_asked_for(make: Any, batch: dict[str, Any]) -> None:
    own = torch.optim.SGD
    changes = []
    for norm in (None, 1e-4):
        trainer = make(ppo_epochs=1, mini_batch_size=4, max_grad_norm=norm)
        optimizer = own(trainer.model.parameters(), lr=1.0)
        trainer = PPOTrainer(trainer.config, trainer.model, tokenizer=trainer.tokenizer,
                             optimizer=optimizer)  # fmt: skip
        before = weights(trainer)
        step(trainer, batch)
        changes.append(sum((w - before[n]).square().sum() for n, w in weights(trainer).items()))
    assert float(changes[1]) ** 0.5 == pytest.approx(1e-4, rel=1e-2)
    assert float(changes[0]) ** 0.5 > 1e-2


def test_a_schedule_of_the_script_moves_once_a_batch(make: Any, batch: dict[str, Any],
                                                     tiny_model_dir: Path, tokenizer: Any) -> None:  # fmt: skip # noqa: E501
    model = Model.from_pretrained(tiny_model_dir)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    config = PPOConfig(batch_size=4, mini_batch_size=1, ppo_epochs=1)
    trainer = PPOTrainer(
        config, model, tokenizer=tokenizer, optimizer=optimizer, lr_scheduler=schedule
    )
    assert [step(trainer, batch)["ppo/learning_rate"] for _ in range(3)] == [0.1, 0.05, 0.025]
    with pytest.raises(ConfigError, match="lr_scheduler steers another optimizer"):
        make(lr_scheduler=schedule)
    other = torch.optim.Adam(model.v_head.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="optimizer leaves out"):
        PPOTrainer(config, model, tokenizer=tokenizer, optimizer=other)


def test_no_pass_has_dropout(make: Any, batch: dict[str, Any]) -> None:
    assert LORA.lora_dropout == 0.5
    trainer = make(LORA, ppo_epochs=1, mini_batch_size=4)
    assert step(trainer, batch)["ppo/policy/approxkl"] == pytest.approx(0.0, abs=1e-10)


def test_checkpointing_changes_no_number(make: Any, batch: dict[str, Any]) -> None:
    assert same_step(step(make(), batch), step(make(gradient_checkpointing=True), batch))


# Saving


@pytest.mark.parametrize("peft_config", [None, LORA])
def test_what_is_saved_is_read_back(
    make: Any, batch: dict[str, Any], tmp_path: Path, peft_config: Any, load_saved: Any
) -> None:
    trainer = make(peft_config)
    step(trainer, batch)
    trainer.save_pretrained(tmp_path / "saved")
    again = Model.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        (logits, _, values), (their_logits, _, their_values) = trainer.model(ids), again(ids)
    torch.testing.assert_close(their_logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(their_values, values, rtol=1e-4, atol=1e-5)
    assert again.is_peft_model == (peft_config is not None)
    assert any("lora_" in n and p.requires_grad for n, p in again.named_parameters()) == (
        again.is_peft_model
    )
    with torch.no_grad():
        torch.testing.assert_close(load_saved(tmp_path / "saved")(ids).logits, logits,
                                   rtol=1e-4, atol=1e-5)  # fmt: skip
    AutoTokenizer.from_pretrained(tmp_path / "saved")


def test_the_value_head_of_a_model_that_trl_saved_is_read(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = Model.from_pretrained(tiny_model_dir)
    model.pretrained_model.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    head = {f"v_head.{n}": w.detach() for n, w in model.v_head.named_parameters()}
    save_file({**load_file(file), **head}, file, {"format": "pt"})
    again = Model.from_pretrained(tmp_path / "saved")
    assert again.v_head.summary.weight.equal(model.v_head.summary.weight)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "cohere"])
def test_models_that_the_fast_path_cannot_serve_give_their_own_log_probs(
    make_model: Any, tokenizer: Any, batch: dict[str, Any], family: str
) -> None:
    base = make_model(family)
    config = PPOConfig(batch_size=4, mini_batch_size=2, ppo_epochs=1, kl_penalty="full")
    trainer = PPOTrainer(config, Model(base), tokenizer=tokenizer)
    expected = [
        log_probs(trainer.model, q.tolist(), r.tolist())[0]
        for q, r in zip(batch["queries"], batch["responses"], strict=True)
    ]
    stats = step(trainer, batch)
    assert list(stats["objective/logprobs"].sum(1)) == pytest.approx(expected, abs=1e-3)
    assert stats["objective/kl"] == pytest.approx(0.0, abs=1e-4)


def test_fp16_needs_a_gpu(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"torch_dtype=torch\.bfloat16"):
        make(dtype=torch.float16)


def test_an_adapter_is_merged_below_a_fresh_one(
    make: Any, batch: dict[str, Any], tmp_path: Path
) -> None:
    trainer = make(LORA)
    step(trainer, batch)
    trainer.save_pretrained(tmp_path / "saved")
    model = Model.from_pretrained(tmp_path / "saved", peft_config=LORA)
    assert isinstance(model.pretrained_model, PeftModel)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[0], trainer.model(ids)[0], rtol=1e-4, atol=1e-4)


def test_the_value_head_starts_as_asked(tiny_model_dir: Path) -> None:
    model = Model.from_pretrained(
        tiny_model_dir, v_head_init_strategy="normal", v_head_initializer_range=5.0
    )
    assert model.v_head.summary.bias.item() == 0.0 and model.v_head.summary.weight.std() > 2.0
    half = Model.from_pretrained(tiny_model_dir, torch_dtype="bfloat16")
    assert half.pretrained_model.dtype == torch.bfloat16
    assert half.v_head.summary.weight.dtype == torch.float32


def test_a_loaded_model_can_be_passed(tiny_model_dir: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    assert Model.from_pretrained(loaded).pretrained_model is loaded
    with pytest.raises(ConfigError, match="torch_dtype"):
        Model.from_pretrained(loaded, torch_dtype=torch.bfloat16)


# Data and trackers


def test_the_dataloader_gives_whole_shuffled_batches(make: Any) -> None:
    rows = [{"input_ids": [i, i], "query": str(i), "review": "x"} for i in range(9)]

    def collate(some: list[dict[str, Any]]) -> dict[str, Any]:
        return {key: [one[key] for one in some] for key in some[0]}

    trainer = make(dataset=Dataset.from_list(rows), data_collator=collate)
    batches = list(trainer.dataloader)
    assert [len(one["query"]) for one in batches] == [4, 4]
    assert set(batches[0]) == {"input_ids", "query"}
    assert [q for one in batches for q in one["query"]] != [str(i) for i in range(8)]
    kept = make(dataset=Dataset.from_list(rows), data_collator=collate,
                remove_unused_columns=False)  # fmt: skip
    assert "review" in next(iter(kept.dataloader))


def test_statistics_reach_the_tracker(make: Any, batch: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make(log_with="tensorboard", project_kwargs={"logging_dir": str(tmp_path)})
    for _ in range(2):
        trainer.log_stats(step(trainer, batch), {"query": []}, batch["scores"])
    trainer.accelerator.end_training()
    folders = {str(file.parent) for file in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(min(folders, key=len)).Reload()  # below it, the settings
    assert {"objective/kl", "env/reward_mean", "ppo/loss/total"} <= set(events.Tags()["scalars"])
    assert [one.step for one in events.Scalars("env/reward_mean")] == [1, 2]


# What is refused


def test_the_configuration_refuses_all_in_one_error() -> None:
    wrong = {
        "num_ppo_epochs": 4, "accelerator_kwargs": {"mixed_precision": "bf16"}, "world_size": 4,
        "push_to_hub_if_best_kwargs": {"repo_id": "x"}, "is_encoder_decoder": True,
        "kl_penalty": "kll", "batch_size": 10, "mini_batch_size": 4, "use_score_norm": True,
        "log_with": "comet", "cliprange": -1.0, "init_kl_coef": 0.0, "adap_kl_ctrl": True,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        PPOConfig(**wrong)
    for line, start in zip(
        str(caught.value).splitlines(),
        ["unknown argument 'num_ppo_epochs'; did you mean ppo_epochs?", "accelerator_kwargs=",
         "world_size=4 cannot be had here: training runs in one process", "push_to_hub_if_best",
         "is_encoder_decoder=True", "kl_penalty should be", "batch_size (10) must be a multiple",
         "log_with='comet': set one of tensorboard, wandb", "use_score_norm needs use_score_",
         "cliprange should be greater"], strict=True,
    ):  # fmt: skip
        assert line.startswith(start), line
    for arguments, match in (
        ({"log_with": "tensorboard"}, "logging_dir"),
        ({"init_kl_coef": 0.0, "adap_kl_ctrl": True}, "0 stays 0"),
    ):
        with pytest.raises(ConfigError, match=match):
            PPOConfig(**arguments)


def test_sizes_have_older_names() -> None:
    assert PPOConfig(batch_size=8, forward_batch_size=4).mini_batch_size == 4
    config = PPOConfig(batch_size=8, mini_batch_size=2, gradient_accumulation_steps=2, steps=100)
    assert (config.step_size, config.total_ppo_epochs) == (4, 13)
    assert PPOConfig(init_kl_coef=0.0).run_config("m").options.adap_kl_ctrl is False  # type: ignore[attr-defined]


def test_the_model_refuses_by_name(tiny_model_dir: Path) -> None:
    for arguments, match in (
        ({"summary_dropout_prob": 0.1, "load_in_8bit": True}, "^summary_dropout.*\n.*load_in_8bit"),
        ({"peft_confg": LORA}, "did you mean peft_config"),
        ({"torch_dtype": "auto"}, "torch_dtype"),
        ({"v_head_init_strategy": "zeros"}, "v_head_init_strategy"),
        ({"peft_config": {"r": 4}}, "peft_config"),
    ):
        with pytest.raises(UserError, match=match):
            Model.from_pretrained(tiny_model_dir, **arguments)


def test_a_batch_that_does_not_fit_is_refused(make: Any, batch: dict[str, Any]) -> None:
    trainer = make()
    for changes, match in (
        ({"queries": [torch.tensor([5])] * 3}, "queries holds 3 entries and batch_size is 4"),
        ({"scores": [1.0]}, "scores holds 1 entries"),
        ({"scores": [1.0, float("nan"), 0.0, 0.0]}, r"scores\[1\] is nan"),
        ({"scores": [torch.ones(2)] * 4}, r"scores\[0\] must be one number"),
        ({"responses": [torch.tensor([], dtype=torch.long)] * 4}, r"responses\[0\] holds no tok"),
        ({"queries": torch.zeros(4, 3, dtype=torch.long)}, r"queries\[0\] holds no tokens"),
        ({"queries": "text"}, "queries must be a tensor"),
        ({"response_masks": [torch.zeros(1)] * 4}, r"response_masks\[0\]"),
    ):
        with pytest.raises(ConfigError, match=match):
            step(trainer, batch, **changes)


def test_other_objects_are_refused(make: Any, tiny_model_dir: Path, tokenizer: Any) -> None:
    model = Model.from_pretrained(tiny_model_dir)
    config = PPOConfig(batch_size=2, mini_batch_size=1)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with pytest.raises(ConfigError, match="AutoModelForCausalLMWithValueHead"):
        PPOTrainer(config, plain, None, tokenizer)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="set tokenizer"):
        PPOTrainer(config, model)
    with pytest.raises(ConfigError, match="num_shared_layers"):
        PPOTrainer(config, model, None, tokenizer, num_shared_layers=2)
    with pytest.raises(ConfigError, match="num_return_sequences"):
        make().generate([torch.tensor([5])], num_return_sequences=2, max_new_tokens=2)


def test_a_loss_that_is_not_finite_names_the_query(make: Any, batch: dict[str, Any]) -> None:
    trainer = make()
    trainer.model.v_head.summary.bias.data.fill_(float("inf"))
    with pytest.raises(TrainingError, match="query"):
        step(trainer, batch)


def test_a_model_can_be_trained_again(make: Any, batch: dict[str, Any], tokenizer: Any) -> None:
    trainer = make()
    step(trainer, batch)
    twin = copy.deepcopy(trainer.model)
    again = PPOTrainer(trainer.config, twin, tokenizer=tokenizer)
    assert step(again, batch)["objective/kl"] == pytest.approx(0.0, abs=1e-5)


def test_a_base_in_four_bits_is_trained_by_its_adapter_and_value_head(
    tiny_model_dir: Path, tokenizer: Any, batch: dict[str, Any]
) -> None:
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    coded = AutoModelForCausalLM.from_pretrained(tiny_model_dir, quantization_config=how)
    with pytest.raises(ModelError, match=r"quantised .bitsandbytes., and there is no adapter"):
        AutoModelForCausalLMWithValueHead(coded)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(coded, peft_config=LORA)
    config = PPOConfig(batch_size=4, mini_batch_size=2, ppo_epochs=1)
    trainer = PPOTrainer(config, model, tokenizer=tokenizer)
    before = weights(trainer)
    assert step(trainer, batch)["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    moved = {name for name, weight in weights(trainer).items() if (weight != before[name]).any()}
    assert moved and all("lora_" in name or "v_head" in name for name in moved)
