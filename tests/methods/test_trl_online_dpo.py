"""Online DPO's loss and gradients equal to those of TRL's trainer, on the same answers."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch

from penchant.data.prompts import Prompt
from penchant.data.tokenise import Tokeniser
from penchant.methods.online_dpo import ONLINE_DPO, OnlineDPOOptions
from penchant.models.load import load_tokenizer
from penchant.models.policy import PolicyScorer
from penchant.models.reference_copy import CopyReference
from penchant.models.scoring import Scorer, ScoringPlan
from penchant.objectives.base import Parts
from penchant.objectives.rollouts import RolloutObjective
from penchant.rl.rewards.judging import Scores
from penchant.rl.rollout import Collector, make_rollouts
from penchant.rl.sampling.base import Completion, Sampling

PROMPTS = ["What is 2 + 2?\n", "Say hi", "Q"]
ANSWERS = [["It is 4.", "Well, that depends, maybe 5?"], [": no", " hi hi hi hi!"], [": a", ": b"]]
REWARDS = [[1.0, -0.5], [0.0, 2.0], [0.25, 0.0]]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return load_tokenizer(str(tiny_model_dir))


def tokens(tokenizer):
    return [
        [[*tokenizer.encode(answer), tokenizer.eos_token_id] for answer in row] for row in ANSWERS
    ]


def theirs(models, tokenizer, beta, folder):
    """TRL's loss, and the policy with its gradients."""
    online = pytest.importorskip("trl.experimental.online_dpo")
    datasets = pytest.importorskip("datasets")
    policy, reference = (copy.deepcopy(model) for model in models)
    flat = [reward for side in zip(*REWARDS, strict=True) for reward in side]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = online.OnlineDPOTrainer(
            model=policy,
            ref_model=reference,
            reward_funcs=lambda completions, **_: flat,
            args=online.OnlineDPOConfig(
                output_dir=str(folder), per_device_train_batch_size=3, beta=beta, report_to="none",
                use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=256,
                missing_eos_penalty=None,
            ),
            train_dataset=datasets.Dataset.from_list([{"prompt": p} for p in PROMPTS]),
            processing_class=tokenizer,
        )  # fmt: skip
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS] * 2
    answers = [ids for side in zip(*tokens(tokenizer), strict=True) for ids in side]
    pad = tokenizer.pad_token_id

    def padded(rows, *, left):
        width = max(map(len, rows))
        filled = [[pad] * (width - len(r)) + r if left else r + [pad] * (width - len(r))
                  for r in rows]  # fmt: skip
        mask = [[0] * (width - len(r)) + [1] * len(r) if left else
                [1] * len(r) + [0] * (width - len(r)) for r in rows]  # fmt: skip
        return torch.tensor(filled), torch.tensor(mask)

    trainer._generate = lambda *_: (
        *padded(prompts, left=True), *padded(answers, left=False), None
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.training_step(trainer.model, {"prompt": PROMPTS})
    return loss.item(), policy


class Replay:
    """Gives the answers and their rewards."""

    options = None

    def __init__(self, tokenizer):
        self.drawn = [[Completion(ids, [], True) for ids in row] for row in tokens(tokenizer)]

    def sync(self):
        pass

    def sample(self, prompts, draw):
        return self.drawn

    def ask(self, samples, team=None):
        return [None] * len(samples)

    def score(self, samples, asked=None):
        flat = [reward for row in REWARDS for reward in row]
        return Scores(flat, flat, [flat], [0.0] * len(flat), {}, 0, None)

    def state_dict(self):
        return {}


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_loss_and_gradients_equal_trls(beta, models, tokenizer, tmp_path):
    their_loss, their_model = theirs(models, tokenizer, beta, tmp_path)
    model, reference = (copy.deepcopy(one) for one in models)
    scorer, other = PolicyScorer(model, 0), Scorer(reference, 0)
    for one in (scorer, other):
        one.use(ScoringPlan(packed=True, fused_head=True, kernel="sdpa"))
    options = OnlineDPOOptions(reward="r", beta=beta)
    replay = Replay(tokenizer)
    collector = Collector(
        scorer, CopyReference(other), replay, Sampling(48), replay, tokenizer, num_generations=2
    )
    records = [Prompt(prompt, {}, f"rows:{i}") for i, prompt in enumerate(PROMPTS)]
    tokeniser = Tokeniser(tokenizer, max_length=256, max_prompt_length=128)
    judged = collector.collect(tokeniser.prompts(records)[0], seed=0)
    rollouts = make_rollouts(judged, ONLINE_DPO.advantages(judged.experience, 0.0, options))
    objective = RolloutObjective(Parts(scorer, collector.reference, ONLINE_DPO, options), collector)
    shared = objective.prepare(scorer, SimpleNamespace(examples=rollouts))
    losses = [objective(scorer, rollouts[i : i + 2], shared)[0].per_example for i in (0, 2, 4)]
    loss = torch.cat(losses).mean()
    loss.backward()
    assert loss.item() == pytest.approx(their_loss, abs=1e-4, rel=1e-4)
    expected = dict(their_model.named_parameters())
    largest = max(p.grad.norm() for p in expected.values())
    for name, parameter in model.named_parameters():
        error = (parameter.grad - expected[name].grad).norm()
        assert error <= 1e-4 * expected[name].grad.norm() + 1e-5 * largest, name
