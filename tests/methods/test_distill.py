"""Distillation: TRL's loss and gradients on the same answers, and what it refuses."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from penchant.config.keys import load_config
from penchant.methods import METHODS
from penchant.methods.distill import DISTILL, DistillOptions
from penchant.models.policy import PolicyScorer
from penchant.models.reference_copy import CopyReference
from penchant.models.scoring import Scorer, ScoringPlan
from penchant.models.teacher import Teacher
from penchant.objectives.base import Parts
from penchant.objectives.rollouts import RolloutObjective
from penchant.rl.rollout import Rollout

PROMPTS = [[1, 5, 6, 7], [1, 9], [1, 5, 6, 7]]
ANSWERS = [[10, 11, 12, 2], [13, 14, 15, 16, 17, 18, 2], [20, 2]]
PACKED = ScoringPlan(packed=True, fused_head=True, kernel="sdpa")
FULL = ScoringPlan(packed=False, fused_head=False, kernel="sdpa")


def options(**keys):
    return DistillOptions(teacher_model="T", **keys)


def rollouts():
    return [
        Rollout(prompt, answer, f"rows:{i}", i, torch.zeros(len(answer)), torch.zeros(len(answer)))
        for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True))
    ]


def theirs(student, teacher, beta, temperature):
    """TRL's loss on padded rows, as its trainer shifts and masks them."""
    gkd = pytest.importorskip("trl.experimental.gkd")
    length = max(len(p) + len(a) for p, a in zip(PROMPTS, ANSWERS, strict=True))
    ids, mask, labels = (torch.full((3, length), fill) for fill in (0, 0, -100))
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        end = len(prompt) + len(answer)
        ids[i, :end], mask[i, :end] = torch.tensor([*prompt, *answer]), 1
        labels[i, len(prompt) : end] = torch.tensor(answer)
    logits = [m(input_ids=ids, attention_mask=mask).logits[:, :-1] for m in (student, teacher)]
    return gkd.GKDTrainer.generalized_jsd_loss(
        logits[0], logits[1].detach(), labels[:, 1:], beta=beta, temperature=temperature
    )


@pytest.mark.parametrize("plan", [PACKED, FULL], ids=["packed", "full-logits"])
@pytest.mark.parametrize(
    ("beta", "temperature"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (0.3, 0.7), (1.0, 1.4)]
)
def test_loss_and_gradients_equal_trls(beta, temperature, plan, make_model):
    student, teacher = make_model(), make_model(seed=1, hidden_size=48)
    twin = copy.deepcopy(student)
    expected = theirs(twin, teacher, beta, temperature)
    expected.backward()

    scorer, other = PolicyScorer(student, 0), Scorer(teacher, 0)
    for one in (scorer, other):
        one.use(plan)
        one.sample_from(temperature=temperature)
    collector = SimpleNamespace(policy=scorer, teacher=Teacher(CopyReference(other), beta))
    objective = RolloutObjective(
        Parts(scorer, None, DISTILL, options(beta=beta, temperature=temperature)), collector
    )
    examples = rollouts()
    shared = objective.prepare(scorer, SimpleNamespace(examples=examples))
    losses, metrics = [], []
    for some in (examples[:2], examples[2:]):
        output, _ = objective(scorer, some, shared)
        losses.append(output.per_example)
        metrics.append(output.metrics["divergence"])
    loss = torch.cat(losses).mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4, rel=1e-4)
    assert float(torch.cat(metrics).mean()) == pytest.approx(loss.item())
    gradients = dict(twin.named_parameters())
    largest = max(p.grad.norm() for p in gradients.values())
    for name, parameter in student.named_parameters():
        error = (parameter.grad - gradients[name].grad).norm()
        assert error <= 1e-4 * gradients[name].grad.norm() + 1e-5 * largest, name


def test_what_filtered_sampling_said_is_not_compared_with_all_tokens():
    found = {}
    for name, keys in {"all": {}, "some": {"top_p": 0.9}}.items():
        said = torch.full((12,), -1.0)
        inputs = SimpleNamespace(
            divergence=said, teacher_kl=said, logprobs=said, old_logprobs=said + 0.1, entropy=said,
            lengths=torch.tensor([4, 7, 1]), token_means=lambda each: each[:3],
        )  # fmt: skip
        found[name] = set(DISTILL.loss(inputs, options(**keys)).metrics)
    assert found["some"] == {"divergence", "kl/teacher", "policy/entropy"}
    assert found["all"] >= {"policy/ratio", "policy/approxkl", "policy/policykl"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"beta": 1.5}, "less than or equal to 1"),
        ({"entropy_coef": 0.1}, "no entropy bonus"),
        ({"importance_sampling": "token"}, "drop importance_sampling"),
        ({"length_penalty": 0.1, "length_budget": 4}, "reward names none; drop length_penalty"),
    ],
)
def test_what_nothing_would_read_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        options(**keys)


def test_other_methods_still_need_a_reward():
    with pytest.raises(ValidationError, match="reward"):
        METHODS["grpo"].options(reward=())
    config = load_config("distill", {"model": "M", "data": "D", "teacher_model": "T"})
    assert config.options.reward == ()
    assert config.flat()["teacher_model"] == "T"
