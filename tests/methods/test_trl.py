"""Losses and gradients equal to those of TRL's trainer, on one model and the same records."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from penchant.data.records import Pair
from penchant.data.tokenise import PairTokeniser
from penchant.evaluation import score_pairs
from penchant.methods import METHODS
from penchant.models.load import load_causal_model, load_tokenizer
from penchant.models.reference import CopyReference
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring

ROWS = [
    {
        "prompt": "What is 2 + 2?\n",
        "chosen": "It is 4.",
        "rejected": "Well, that depends, maybe 5?",
    },
    {"prompt": "Say hi", "chosen": ": hi!", "rejected": ": no"},
    {"prompt": "Q", "chosen": ": a long answer that goes on for a while", "rejected": ": b"},
]
CASES = [
    ("dpo", {"beta": 0.1}, {"loss_type": "sigmoid"}),
    ("dpo", {"beta": 0.7}, {"loss_type": "sigmoid"}),
    ("dpo", {"beta": 0.3, "loss_type": "hinge"}, {"loss_type": "hinge"}),
    ("ipo", {"beta": 0.2}, {"loss_type": "ipo"}),
]


@pytest.fixture(scope="module")
def models(tiny_model_dir):
    """A policy that differs from its reference by a nat or so a completion."""
    reference = load_causal_model(str(tiny_model_dir), dtype=torch.float32)
    policy = copy.deepcopy(reference)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy, reference


@pytest.fixture
def trl_trainer(models, tiny_model_dir, tmp_path):
    """Return a function that makes TRL's DPOTrainer with copies of both models."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")

    def make(beta, loss_type):
        policy, reference = copy.deepcopy(models)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trl.DPOTrainer(
                model=policy,
                ref_model=reference,
                args=trl.DPOConfig(
                    output_dir=str(tmp_path),
                    beta=beta,
                    loss_type=loss_type,
                    max_length=256,
                    report_to="none",
                    use_cpu=True,
                    bf16=False,
                    gradient_checkpointing=False,
                ),
                train_dataset=datasets.Dataset.from_list(ROWS),
                processing_class=load_tokenizer(str(tiny_model_dir)),
            )

    return make


@pytest.mark.parametrize(("method", "options", "trl_options"), CASES)
def test_loss_and_gradients_equal_trls(
    method, options, trl_options, trl_trainer, models, tiny_model_dir
):
    trainer = trl_trainer(options["beta"], **trl_options)
    batch = trainer.data_collator(list(trainer.train_dataset))
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    policy, reference = copy.deepcopy(models)
    tokeniser = PairTokeniser(
        load_tokenizer(str(tiny_model_dir)), end_token_ids=[], max_length=256, max_prompt_length=128
    )
    examples, _ = tokeniser([Pair(**row, where=f"rows:{i}") for i, row in enumerate(ROWS, 1)])
    rows = [[*e.prompt, *e.chosen] for e in examples] + [[*e.prompt, *e.rejected] for e in examples]
    kept = batch["attention_mask"].bool()
    assert [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], kept, strict=True)] == rows

    groups = [example.group() for example in examples]
    scorers = [Scorer(model, 0) for model in (policy, reference)]
    for scorer in scorers:
        assert plan_scoring(scorer, groups, attention="auto", max_length=256).packed
    laid_out = scorers[0].batch(groups)
    inputs = score_pairs(scorers[0], laid_out, CopyReference(scorers[1]).sums(groups, laid_out))
    spec = METHODS[method]
    found = spec.loss(inputs, spec.options(**options)).per_example.mean()
    found.backward()

    margins = inputs.chosen - inputs.ref_chosen - inputs.rejected + inputs.ref_rejected
    assert margins.abs().min() > 0.01  # else every loss of this kind would agree
    assert abs(found.item() - expected.item()) < 1e-4
    theirs = dict(trainer.model.named_parameters())
    largest = max(p.grad.norm() for p in theirs.values())
    for name, parameter in policy.named_parameters():
        error = (parameter.grad - theirs[name].grad).norm()
        assert error <= 1e-3 * theirs[name].grad.norm() + 1e-5 * largest, name
