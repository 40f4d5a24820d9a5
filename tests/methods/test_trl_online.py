"""Advantages, losses and gradients equal to those of TRL's trainers, on the same rollouts."""

from __future__ import annotations

import copy
import random
import warnings
from types import SimpleNamespace

import pytest
import torch

from penchant.data.prompts import Prompt
from penchant.data.tokenise import Tokeniser
from penchant.methods import METHODS
from penchant.methods.importance import reweighted
from penchant.models.load import load_causal_model, load_tokenizer
from penchant.models.policy import PolicyScorer
from penchant.models.reference_copy import CopyReference
from penchant.models.scoring import Scorer, ScoringPlan
from penchant.objectives.base import Parts
from penchant.objectives.rollouts import RolloutObjective
from penchant.rl.rewards.judging import Scores
from penchant.rl.rollout import Collector, make_rollouts
from penchant.rl.sampling.base import Completion, Sampling

PROMPTS = ["What is 2 + 2?\n", "Say hi", "Q"]
ANSWERS = [
    ["It is 4.", "4", "Well, that depends, maybe 5?", "No."],
    [": hi!", ": no", " hi hi hi hi hi hi", "?"],
    [": a long answer that goes on for a while", ": b", ": c", "."],
]
GIVEN = [
    [1.0, 0.25, -0.5, 0.0, 2.0, -1.0, 0.0, 0.25, 1.0, 3.0, 3.0, 3.0],
    [0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.25, 0.0, 2.0, 0.0, 0.0, 0.0],
]
SCORES = [sum(values) for values in zip(*GIVEN, strict=True)]
CUT = 3  # the answer of each prompt that max_completion_length cut
GROUP = 4
MAX_LENGTH = 48
TOKEN = {"loss_type": "grpo", "importance_sampling_level": "token", "beta": 0.04}
BOUND = {"epsilon_high": 0.02}
CASES = [
    *(
        ("grpo", {"loss_type": loss_type, "importance_sampling_level": level, "beta": beta})
        for loss_type in ("grpo", "dapo", "dr_grpo")
        for level in ("token", "sequence")
        for beta in (0.0, 0.04)
    ),
    ("grpo", {**TOKEN, "use_bias_correction_kl": False}),
    ("grpo", {**TOKEN, "epsilon_high": 0.4}),
    ("grpo", {**TOKEN, "epsilon": 0.05, "importance_sampling_level": "sequence"}),
    ("grpo", {**TOKEN, "scale_rewards": "batch"}),
    ("grpo", {**TOKEN, "scale_rewards": "none", "loss_type": "dr_grpo"}),
    ("grpo", {**TOKEN, "entropy_coef": 0.1}),
    ("grpo", {**TOKEN, "entropy_coef": 0.1, "loss_type": "dapo"}),
    ("grpo", {**TOKEN, "temperature": 0.7}),
    *(
        ("grpo", {**TOKEN, "loss_type": "cispo", "importance_sampling_level": level, **BOUND})
        for level in ("token", "sequence")
    ),
    ("grpo", {**TOKEN, "multi_objective_aggregation": "normalize_then_sum"}),
    ("grpo", {**TOKEN, "epsilon": 0.1, "loss_type": "dapo", "mask_truncated_completions": True}),
    *(
        ("grpo", {**TOKEN, "epsilon": 0.05, "loss_type": "dapo", "importance_sampling": level})
        for level in ("token", "sequence")
    ),
    *(
        ("rloo", {"beta": beta, "normalize_advantages": normalised})
        for beta in (0.0, 0.05)
        for normalised in (False, True)
    ),
    ("rloo", {"beta": 0.05, "epsilon": 0.1, "epsilon_high": 0.4}),
    ("rloo", {"beta": 0.5, "temperature": 0.7}),
]


class Replay:
    """Gives the answers and their scores, to either side."""

    options = None

    def __init__(self, tokenizer):
        end = tokenizer.eos_token_id
        ids = [[tokenizer.encode(a) for a in answers] for answers in ANSWERS]
        self.drawn = [
            [Completion(a if i == CUT else [*a, end], [], i != CUT) for i, a in enumerate(answers)]
            for answers in ids
        ]

    @torch.no_grad()
    def sampled(self, model, prompts, level):
        """The same, drawn by an engine that computes otherwise: with log-probs that are off."""
        noise = random.Random(0)
        deviation = {"token": 1.0, "sequence": 0.3}[level]
        for row, prompt in zip(self.drawn, prompts, strict=True):
            for i, answer in enumerate(row):
                logits = model(torch.tensor([[*prompt, *answer.ids]])).logits[
                    0, -len(answer.ids) - 1 :
                ]
                true = logits[:-1].log_softmax(-1).gather(1, torch.tensor(answer.ids).unsqueeze(1))
                off = [value + noise.gauss(0, deviation) for value in true.squeeze(1).tolist()]
                row[i] = answer._replace(logprobs=off)

    def sync(self):
        pass

    def sample(self, prompts, draw):
        return self.drawn

    def ask(self, samples, team=None):
        return [None] * len(samples)

    def score(self, samples, asked=None):
        return Scores(
            rewards=SCORES, raw=SCORES, given=GIVEN, penalties=[0.0] * len(SCORES), by_name={},
            dropped=0, disagreement=None,
        )  # fmt: skip

    def state_dict(self):
        return {}


def moved(model, amount, seed):
    """The model with other weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return load_tokenizer(str(tiny_model_dir))


@pytest.fixture(scope="module")
def reference(tiny_model_dir):
    return load_causal_model(str(tiny_model_dir), dtype=torch.float32)


@pytest.fixture
def theirs(reference, tokenizer, tmp_path):
    """Return a function that gives TRL's advantages, its loss, and the model with its gradients."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")

    def compute(method, options):
        options = dict(options)
        if options.get("loss_type") == "cispo":
            options["epsilon_high"] += 1  # there the bound itself
        level = options.pop("importance_sampling", None)
        if level is not None:
            mode = {"token": "token_truncate", "sequence": "sequence_mask"}[level]
            options |= {"vllm_importance_sampling_mode": mode}
        trainer_class, config_class = {
            "grpo": (trl.GRPOTrainer, trl.GRPOConfig),
            "rloo": (trl.RLOOTrainer, trl.RLOOConfig),
        }[method]
        rows = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = trainer_class(
                model=moved(copy.deepcopy(reference), 0.05, seed=0),
                reward_funcs=[lambda completions, g=g, **_: g for g in GIVEN],
                args=config_class(
                    output_dir=str(tmp_path),
                    per_device_train_batch_size=len(rows),
                    num_generations=GROUP,
                    num_iterations=2,  # else log-probs of the sampler are not kept
                    max_completion_length=MAX_LENGTH,
                    report_to="none",
                    use_cpu=True,
                    bf16=False,
                    gradient_checkpointing=False,
                    **options,
                ),
                train_dataset=datasets.Dataset.from_list(rows),
                processing_class=tokenizer,
            )
        trainer.use_vllm = level is not None
        if trainer.ref_model is not None:
            trainer.ref_model.load_state_dict(reference.state_dict())
        replay = Replay(tokenizer)
        if level is not None:
            replay.sampled(trainer.model, [tokenizer.encode(p) for p in PROMPTS], level)
        drawn = [answer for answers in replay.drawn for answer in answers]
        flat, sampled = [a.ids for a in drawn], [a.logprobs for a in drawn]
        prompts = [tokenizer.encode(row["prompt"]) for row in rows]
        texts = tokenizer.batch_decode(flat, skip_special_tokens=True)
        trainer._generate = lambda _: (
            (prompts, flat, None, texts, sampled if level else None, {}, None, [])
            if method == "grpo"
            else (prompts, flat, texts)
        )
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        inputs = trainer._generate_and_score_completions(rows)
        moved(trainer.model, 0.03, seed=1)
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        weights = inputs.get("importance_sampling_ratio")  # of tokens, or of answers
        return inputs["advantages"], loss.item(), trainer.model, weights

    return compute


def ours(method, options, reference, tokenizer, micro_batch_size):
    """Our advantages, loss, model with its gradients, and share of clipped tokens."""
    spec = METHODS[method]
    chosen = spec.options(
        reward=("r", "s"), num_generations=GROUP, max_completion_length=MAX_LENGTH,
        skip_zero_variance=False, **options,
    )  # fmt: skip
    model = moved(copy.deepcopy(reference), 0.05, seed=0)
    needs, replay = spec.needs(chosen), Replay(tokenizer)
    if (level := chosen.importance_level) is not None:
        replay.sampled(model, [tokenizer.encode(p) for p in PROMPTS], level)
    scorer = PolicyScorer(model, 0, entropy_gradient=needs.entropy_gradient)
    other = Scorer(copy.deepcopy(reference), 0)
    for one in (scorer, other):
        one.use(ScoringPlan(packed=True, fused_head=True, kernel="sdpa"))
        one.sample_from(temperature=chosen.temperature)
    collector = Collector(
        scorer, CopyReference(other) if needs.reference else None, replay, Sampling(MAX_LENGTH),
        replay, tokenizer, num_generations=GROUP, batch_size=5,
    )  # fmt: skip
    records = [Prompt(prompt, {}, f"rows:{i}") for i, prompt in enumerate(PROMPTS)]
    tokeniser = Tokeniser(tokenizer, max_length=256, max_prompt_length=128)
    judged = collector.collect(tokeniser.prompts(records)[0], seed=0)
    estimate = spec.advantages(judged.experience, 0.0, chosen)
    lengths = judged.experience.lengths
    advantages = estimate.advantages[lengths.cumsum(0) - 1]
    estimate = reweighted(estimate, judged.experience, chosen)
    rollouts = make_rollouts(judged, estimate)

    moved(model, 0.03, seed=1)
    objective = RolloutObjective(Parts(scorer, collector.reference, spec, chosen), collector)
    shared = objective.prepare(scorer, SimpleNamespace(examples=rollouts))
    losses, bites = [], []
    for start in range(0, len(rollouts), micro_batch_size):
        output, _ = objective(scorer, rollouts[start : start + micro_batch_size], shared)
        losses.append(output.per_example)
        bites.append(output.metrics["policy/clipfrac"])
    loss = torch.cat(losses).mean()
    loss.backward()
    return advantages, loss.item(), model, float(torch.cat(bites).mean()), estimate.metrics


@pytest.mark.parametrize(
    ("method", "options"),
    CASES,
    ids=["-".join([m, *(f"{k}={v}" for k, v in o.items())]) for m, o in CASES],
)
def test_advantages_loss_and_gradients_equal_trls(method, options, theirs, reference, tokenizer):
    their_advantages, their_loss, their_model, weights = theirs(method, options)
    advantages, loss, model, clipped, metrics = ours(method, options, reference, tokenizer, 5)
    assert 0.05 < clipped < 0.95  # else every clip range would agree
    torch.testing.assert_close(advantages, their_advantages, rtol=1e-4, atol=1e-4)
    assert loss == pytest.approx(their_loss, abs=1e-4, rel=1e-4)
    if weights is not None:
        assert 0 < metrics["sampling/truncated"] < 1  # else every cap would agree
        assert metrics["sampling/ratio_max"] > 3 and 0 < float(weights.max()) <= 3
    assert_gradients_equal(model, their_model)


def test_rloo_leaves_truncated_answers_out_as_trl_does(theirs, reference, tokenizer):
    """TRL divides by them too, and adds their advantages, which no weight changes, to the loss.

    Without `beta`, since TRL charges what is left out no divergence.
    """
    options = {"beta": 0.0, "epsilon": 0.1, "mask_truncated_completions": True}
    their_advantages, their_loss, their_model, _ = theirs("rloo", options)
    advantages, loss, model, clipped, _ = ours("rloo", options, reference, tokenizer, 5)
    assert 0.05 < clipped < 0.95
    torch.testing.assert_close(advantages, their_advantages, rtol=1e-4, atol=1e-4)
    kept = 1 - 1 / GROUP
    assert (advantages[CUT::GROUP] != 0).any()
    constant = float(advantages[CUT::GROUP].sum() / len(advantages))
    assert loss * kept - constant == pytest.approx(their_loss, abs=1e-4, rel=1e-4)
    assert_gradients_equal(model, their_model, kept)


def assert_gradients_equal(model, their_model, share=1.0):
    """`share` of ours is theirs, to 1e-3 of each and 1e-4 of the largest."""
    expected = dict(their_model.named_parameters())
    largest = max(p.grad.norm() for p in expected.values())
    for name, parameter in model.named_parameters():
        error = (share * parameter.grad - expected[name].grad).norm()
        assert error <= 1e-3 * expected[name].grad.norm() + 1e-4 * largest, name
