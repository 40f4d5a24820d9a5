"""Losses and gradients equal to those of TRL's trainer, on one model and the same records."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from penchant.data.records import Pair
from penchant.data.tokenise import Tokeniser
from penchant.methods import METHODS
from penchant.models.architecture import router_coefficient
from penchant.models.load import load_tokenizer
from penchant.models.reference_copy import CopyReference
from penchant.models.router import RouterLoss
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.objectives.pair_inputs import pair_inputs, tail_weights

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
    ("robust", {"beta": 0.3, "label_smoothing": 0.2}, {"loss_type": "robust"}),
    ("exo", {"beta": 0.3, "label_smoothing": 0.1}, {"loss_type": "exo_pair"}),
    ("exo", {"beta": 0.3, "label_smoothing": 1e-3}, {"loss_type": "exo_pair"}),
    ("nca", {"beta": 0.3}, {"loss_type": "nca_pair"}),
    ("bco", {"beta": 0.3}, {"loss_type": "bco_pair"}),
    ("sppo", {"beta": 0.3}, {"loss_type": "sppo_hard"}),
    ("aot", {"beta": 0.3, "label_smoothing": 0.2}, {"loss_type": "aot"}),
    ("aot", {"beta": 0.3, "paired": False, "label_smoothing": 0.2}, {"loss_type": "aot_unpaired"}),
    ("apo_zero", {"beta": 0.3}, {"loss_type": "apo_zero"}),
    ("apo_down", {"beta": 0.3}, {"loss_type": "apo_down"}),
    ("discopop", {"beta": 0.1, "discopop_tau": 0.1}, {"loss_type": "discopop"}),
    ("sigmoid_norm", {"beta": 5.0}, {"loss_type": "sigmoid_norm"}),
    # What the family shares
    *(
        (method, {"beta": 0.3, "f_divergence_type": divergence}, {"loss_type": loss_type})
        for method, loss_type in (("dpo", "sigmoid"), ("ipo", "ipo"))
        for divergence in ("forward_kl", "js_divergence", "alpha_divergence")
    ),
    (
        "exo",
        {
            "beta": 0.3,
            "label_smoothing": 0.1,
            "f_divergence_type": "alpha_divergence",
            "f_alpha_divergence_coef": 1.5,
        },
        {"loss_type": "exo_pair"},
    ),
    ("dpo", {"beta": 0.3, "ld_alpha": 0.4}, {"loss_type": "sigmoid"}),
    ("sigmoid_norm", {"beta": 5.0, "ld_alpha": 0.0}, {"loss_type": "sigmoid_norm"}),
    ("dpo", {"beta": 0.3, "use_weighting": True}, {"loss_type": "sigmoid"}),
    ("nca", {"beta": 0.3, "use_weighting": True, "ld_alpha": 0.4}, {"loss_type": "nca_pair"}),
    (
        "dpo",
        {"beta": 0.3, "rpo_alpha": 0.5, "ld_alpha": 0.4},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    ),
    (
        "aot",
        {"beta": 0.3, "rpo_alpha": 0.5},
        {"loss_type": ["aot", "sft"], "loss_weights": [1, 0.5]},
    ),
    (
        "mpo",
        {"beta": 0.3, "losses": {"dpo": 0.8, "bco": 0.2, "sft": 1.0}},
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    ),
    (
        "mpo",
        {"beta": 0.3, "losses": "aot=0.5,ipo=2"},
        {"loss_type": ["aot", "ipo"], "loss_weights": [0.5, 2]},
    ),
]
# Ours alone, or spelled in `loss_type` there
OWN = {"loss_type", "paired", "rpo_alpha", "losses"}


@pytest.fixture
def trl_trainer(models, tiny_model_dir, tmp_path):
    """Return a function that makes TRL's DPOTrainer with copies of both models."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")

    def make(both=models, **options):
        policy, reference = copy.deepcopy(both)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trl.DPOTrainer(
                model=policy,
                ref_model=reference,
                args=trl.DPOConfig(
                    output_dir=str(tmp_path),
                    max_length=256,
                    report_to="none",
                    use_cpu=True,
                    bf16=False,
                    gradient_checkpointing=False,
                    **options,
                ),
                train_dataset=datasets.Dataset.from_list(ROWS),
                processing_class=load_tokenizer(str(tiny_model_dir)),
            )

    return make


def tokenised(tiny_model_dir, batch):
    """Our examples of the rows, which are TRL's to the token."""
    tokeniser = Tokeniser(
        load_tokenizer(str(tiny_model_dir)), max_length=256, max_prompt_length=128
    )
    examples, _ = tokeniser.pairs([Pair(**row, where=f"rows:{i}") for i, row in enumerate(ROWS, 1)])
    rows = [[*e.prompt, *e.chosen] for e in examples] + [[*e.prompt, *e.rejected] for e in examples]
    kept = batch["attention_mask"].bool()
    assert [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], kept, strict=True)] == rows
    return examples


def scored(models, examples, needs):
    """Our inputs, from packed batches."""
    groups = [example.group() for example in examples]
    scorers = [Scorer(model, 0) for model in models]
    for scorer in scorers:
        assert plan_scoring(scorer, groups, attention="auto", max_length=256).packed
    batch = scorers[0].batch(groups)
    weights = tail_weights(batch, needs.tail_weight)
    ref_sums = CopyReference(scorers[1]).sums(groups, batch, weights)
    also = "collisions" if needs.weights else None
    return pair_inputs(scorers[0](batch, also), batch, ref_sums, weights)


@pytest.mark.parametrize(("method", "options", "trl_options"), CASES)
def test_loss_and_gradients_equal_trls(
    method, options, trl_options, trl_trainer, models, tiny_model_dir
):
    shared = {key: value for key, value in options.items() if key not in OWN}
    trainer = trl_trainer(**shared, **trl_options)
    batch = trainer.data_collator(list(trainer.train_dataset))
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    policy, reference = copy.deepcopy(models)
    spec = METHODS[method]
    chosen = spec.options(**options)
    inputs = scored((policy, reference), tokenised(tiny_model_dir, batch), spec.needs(chosen))
    found = spec.loss(inputs, chosen).per_example.mean()
    found.backward()

    margins = inputs.chosen - inputs.ref_chosen - inputs.rejected + inputs.ref_rejected
    assert margins.abs().min() > 0.01  # else every loss of this kind would agree
    assert found.item() == pytest.approx(expected.item(), abs=1e-4, rel=1e-5)
    theirs = dict(trainer.model.named_parameters())
    largest = max(p.grad.norm() for p in theirs.values())
    for name, parameter in policy.named_parameters():
        error = (parameter.grad - theirs[name].grad).norm()
        assert error <= 1e-3 * theirs[name].grad.norm() + 1e-5 * largest, name


# A window shorter than every record, in one of two layers.
MIXED = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "head_dim": 8,
    "max_position_embeddings": 512,
}
TODAYS = {
    "gemma3_text": MIXED,
    "gpt_oss": {**MIXED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_5_text": {"max_position_embeddings": 512},
}


def losses_of_three_steps(trainer, batch, policy, ours):
    """Of both, side by side; each takes plain steps on its own copy of the policy."""
    losses = []
    for _ in range(3):
        both = (ours(), trainer.compute_loss(trainer.model, batch))
        losses.append(tuple(loss.item() for loss in both))
        for loss, model in zip(both, (policy, trainer.model), strict=True):
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= 1e-3 * parameter.grad
    assert losses[0][0] - losses[2][0] > 0.01  # the steps go somewhere
    return losses


def assert_near(losses):
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("family", TODAYS)
def test_losses_of_three_steps_with_windows_sinks_and_states_equal_trls(
    family, trl_trainer, make_model, tiny_model_dir
):
    size = len(load_tokenizer(str(tiny_model_dir)))
    both = [make_model(family, seed=s, vocab_size=size, **TODAYS[family]) for s in (0, 1)]
    # The routers' own loss is no part of a method's.
    router = {"router_aux_loss_coef": 0.0} if family == "gpt_oss" else {}
    trainer = trl_trainer(both, beta=0.1, loss_type="sigmoid", **router)
    batch = trainer.data_collator(list(trainer.train_dataset))
    policy, reference = copy.deepcopy(both)
    examples = tokenised(tiny_model_dir, batch)
    spec = METHODS["dpo"]
    chosen = spec.options(beta=0.1)

    def ours():
        inputs = scored((policy, reference), examples, spec.needs(chosen))
        return spec.loss(inputs, chosen).per_example.mean()

    assert_near(losses_of_three_steps(trainer, batch, policy, ours))


@pytest.mark.parametrize("coefficient", [None, 0.5])
def test_the_loss_with_the_balance_of_experts_equals_trls_where_rows_are_padded(
    coefficient, trl_trainer, make_model, tiny_model_dir
):
    """A packed row counts a prompt once, which TRL does not: see docs/models.md."""
    size = len(load_tokenizer(str(tiny_model_dir)))
    settings = {**TODAYS["gpt_oss"], "vocab_size": size, "router_aux_loss_coef": 0.9}
    both = [make_model("gpt_oss", seed=s, **settings) for s in (0, 1)]
    given = {} if coefficient is None else {"router_aux_loss_coef": coefficient}
    trainer = trl_trainer(both, beta=0.1, loss_type="sigmoid", **given)
    batch = trainer.data_collator(list(trainer.train_dataset))
    policy, reference = copy.deepcopy(both)
    groups = [example.group() for example in tokenised(tiny_model_dir, batch)]
    scorer, frozen = Scorer(policy, 0).train(), Scorer(reference, 0)
    scorer.router = RouterLoss(policy, router_coefficient(policy.config, coefficient, "gpt_oss"))
    laid_out = scorer.batch(groups)
    ref_sums = CopyReference(frozen).sums(groups, laid_out, None)
    spec = METHODS["dpo"]

    def ours():
        inputs = pair_inputs(scorer(laid_out), laid_out, ref_sums, None)
        loss = spec.loss(inputs, spec.options(beta=0.1)).per_example.mean()
        return loss + scorer.router.coefficient * scorer.router.take()

    assert_near(losses_of_three_steps(trainer, batch, policy, ours))
