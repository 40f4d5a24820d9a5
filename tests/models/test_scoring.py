"""Packed scoring against the naive computation: every family, every way of training it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model

from penchant.data.batch import Group, segment_sums
from penchant.models.distribution import entropies, filtered
from penchant.models.lora import add_lora
from penchant.models.memory import enable_checkpointing
from penchant.models.scoring import PLAIN, Scorer, ScoringPlan

PACKED = ScoringPlan(packed=True, fused_head=True, kernel="sdpa")
PADDED = ScoringPlan(packed=False, fused_head=True, kernel="sdpa")
SERVED = ["llama", "qwen3", "mistral", "phi", "granite", "cohere", "gemma3_text", "gpt2"]


def scorer_for(model, plan=PACKED):
    scorer = Scorer(model, pad_token_id=0)
    scorer.use(plan)
    return scorer


def score(scorer, groups):
    return scorer(scorer.batch(groups))


def gradients(model, values):
    """Of a sum with a different factor for every token, by parameter name."""
    values = values.double()
    (values * torch.linspace(-1.0, 2.0, len(values), dtype=values.dtype)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert found
    assert all(gradient is not None for gradient in found.values())
    return found


def assert_same_gradients(found, expected, tolerance):
    """Errors are relative to the gradient; those of key biases are zero but for noise."""
    assert found.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in found.items():
        error = (gradient - expected[name]).norm() / (expected[name].norm() + 1e-2 * largest)
        assert error <= tolerance, f"{name}: {error:.2g}"


def perturb_adapter(model):
    """Move an adapter off its start, where B is zero and A has no gradient."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data.copy_(0.1 * noise)
    return model


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("plan", [PACKED, PADDED], ids=["packed", "padded"])
def test_every_token_gets_the_logprob_of_a_plain_forward(
    family, plan, make_model, groups, plain_logprobs
):
    with torch.no_grad():
        expected = plain_logprobs(make_model(family), groups)
        found = score(scorer_for(make_model(family), plan), groups)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_a_model_with_soft_capping_is_scored_right_in_the_padded_layout(
    make_model, groups, plain_logprobs
):
    with torch.no_grad():
        expected = plain_logprobs(make_model("gemma2"), groups)
        found = score(scorer_for(make_model("gemma2"), PADDED), groups)
        uncapped = score(
            scorer_for(make_model("gemma2", final_logit_softcapping=None), PADDED), groups
        )
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert (uncapped - found).abs().max() > 0.1


def test_final_soft_capping_alone_is_served_packed(make_model, groups, plain_logprobs):
    changes = {"attn_logit_softcapping": None, "sliding_window": 128}
    with torch.no_grad():
        expected = plain_logprobs(make_model("gemma2", **changes), groups)
        found = score(scorer_for(make_model("gemma2", **changes)), groups)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_tied_and_untied_heads_are_both_the_models_own(make_model, groups, plain_logprobs):
    for tied in (True, False):
        with torch.no_grad():
            expected = plain_logprobs(make_model(tie_word_embeddings=tied), groups)
            found = score(scorer_for(make_model(tie_word_embeddings=tied)), groups)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


GRADIENT_CASES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen3", {}),
    ("phi", {}),
    ("gpt2", {}),
    ("cohere", {}),
    ("granite", {}),
    ("gemma3_text", {}),
    ("gemma2", {"attn_logit_softcapping": None, "sliding_window": 128}),
]


@pytest.mark.parametrize(("family", "changes"), GRADIENT_CASES)
def test_gradients_of_all_weights_equal_those_of_full_logits(
    family, changes, make_model, groups, plain_logprobs
):
    plain = make_model(family, dtype="float64", **changes)
    expected = gradients(plain, plain_logprobs(plain, groups))
    packed = make_model(family, dtype="float64", **changes)
    found = gradients(packed, score(scorer_for(packed), groups))
    # Phi and GPT-2 compute in fp64 throughout; the others round to fp32 in RMSNorm and RoPE.
    assert_same_gradients(found, expected, 1e-10 if family in ("phi", "gpt2") else 1e-6)


ADAPTERS = {
    "all linear layers": LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"),
    "the head too": LoraConfig(
        r=3, target_modules=["q_proj", "down_proj", "lm_head"], task_type="CAUSAL_LM"
    ),
    "the head whole": LoraConfig(
        r=3, target_modules=["v_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    ),
    "the head alone": LoraConfig(r=3, target_modules=["lm_head"], task_type="CAUSAL_LM"),
}


def adapted(make_model, adapter, **changes):
    torch.manual_seed(3)
    model = make_model(dtype="float64", **changes)
    torch.manual_seed(4)
    return perturb_adapter(get_peft_model(model, ADAPTERS[adapter]))


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_lora_values_and_gradients_equal_those_of_full_logits(
    adapter, tied, make_model, groups, plain_logprobs
):
    plain = adapted(make_model, adapter, tie_word_embeddings=tied)
    expected_values = plain_logprobs(plain, groups)
    expected = gradients(plain, expected_values)
    packed = adapted(make_model, adapter, tie_word_embeddings=tied)
    found_values = score(scorer_for(packed), groups)
    found = gradients(packed, found_values)
    torch.testing.assert_close(found_values, expected_values, rtol=0, atol=1e-9)
    assert_same_gradients(found, expected, 1e-6)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_switched_off_adapter_is_the_base_model(adapter, make_model, groups, plain_logprobs):
    scorer = scorer_for(adapted(make_model, adapter))
    if adapter == "the head whole":
        head = scorer.causal_model.lm_head.modules_to_save["default"]
        head.weight.data.mul_(0.5)
    with torch.no_grad():
        trained = score(scorer, groups)
        with scorer.model.disable_adapter():
            found = score(scorer, groups)
        expected = plain_logprobs(make_model(dtype="float64"), groups)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert (trained - found).abs().max() > 0.01


class DropOddFeatures(torch.nn.Module):
    """A dropout that anyone can repeat."""

    def forward(self, x):
        return 2 * x * (torch.arange(x.shape[-1]) % 2 == 0)


def test_dropout_in_front_of_a_lora_head_touches_the_adapter_alone(
    make_model, groups, plain_logprobs
):
    def build():
        model = adapted(make_model, "the head alone")
        head = model.get_base_model().lm_head
        head.lora_dropout["default"] = DropOddFeatures()
        return model

    expected = plain_logprobs(build(), groups)
    torch.testing.assert_close(score(scorer_for(build()), groups), expected, rtol=0, atol=1e-9)
    without = score(scorer_for(adapted(make_model, "the head alone")), groups)
    assert (without - expected).abs().max() > 0.01


def test_lora_dropout_is_on_in_training_and_off_in_evaluation(make_model, groups):
    lora = {"r": 4, "alpha": 8, "target_modules": "all-linear"}
    scorer = scorer_for(perturb_adapter(add_lora(make_model(), dropout=0.5, **lora)))
    with torch.no_grad():
        scorer.eval()
        assert torch.equal(score(scorer, groups), score(scorer, groups))
        scorer.train()
        assert not torch.equal(score(scorer, groups), score(scorer, groups))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_gradient_checkpointing_gives_the_same_gradients(family, lora, make_model, groups):
    def found(checkpointing):
        model = make_model(family, dtype="float64")
        if lora:
            torch.manual_seed(4)
            model = add_lora(model, r=3, alpha=6, dropout=0.0, target_modules="all-linear")
            perturb_adapter(model)
        scorer = scorer_for(model)
        if checkpointing:
            enable_checkpointing(scorer)
            assert scorer.causal_model.is_gradient_checkpointing
        scorer.train()
        with counted_calls(scorer.causal_model) as calls:
            grads = gradients(model, score(scorer, groups))
        assert len(calls) == (2 if checkpointing else 1)
        return grads

    expected = found(checkpointing=False)
    assert_same_gradients(found(checkpointing=True), expected, 1e-10)


@contextmanager
def counted_calls(model):
    """How often the first layer's normalisation runs: twice where its forward is recomputed."""
    first = next(m for m in model.modules() if "Norm" in type(m).__name__)
    calls = []
    handle = first.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


@pytest.mark.parametrize("trainable_head", [False, True])
@pytest.mark.parametrize("plan", [PACKED, PADDED], ids=["packed", "padded"])
def test_bf16_autocast_stays_close_to_single_precision(plan, trainable_head, make_model, groups):
    model = make_model()
    if not trainable_head:
        model.lm_head.requires_grad_(False)
    exact = score(scorer_for(model, plan), groups)
    expected = gradients(model, exact)
    other = make_model()
    if not trainable_head:
        other.lm_head.requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = score(scorer_for(other, plan), groups)
    assert found.dtype == torch.float32
    # bf16 keeps 8 bits: logits of size 5 are off by up to 0.02 each, and two layers add theirs.
    assert (found - exact).abs().mean() < 0.05
    for name, gradient in gradients(other, found).items():
        one, two = gradient.flatten(), expected[name].flatten()
        assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.98, name


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_scoring_a_batch_makes_no_tensor_of_tokens_by_vocabulary(
    lora, make_model, monkeypatch, largest_tensor
):
    monkeypatch.setattr("penchant.models.vocabulary.CHUNK_ELEMENTS", {"cpu": 1})
    monkeypatch.setattr("penchant.models.vocabulary.ROWS_AT_ONCE", 8)
    model = make_model(vocab_size=4096)
    if lora:
        model = add_lora(model, r=2, alpha=4, dropout=0.0, target_modules="all-linear")
    scorer = scorer_for(model)
    many = [Group([1, *range(30)], ([*range(50, 90)], [*range(100, 130)]))] * 3
    with largest_tensor() as fused:
        score(scorer, many).sum().backward()
    scorer.use(PLAIN)
    with largest_tensor() as plain:
        score(scorer, many).sum().backward()
    assert fused.numel <= 4096 * 32  # the head itself
    assert plain.numel >= 210 * 4096


def test_sums_over_completions_are_those_of_their_tokens(make_model, groups):
    scorer = scorer_for(make_model())
    batch = scorer.batch(groups)
    with torch.no_grad():
        tokens = scorer(batch)
        sums = segment_sums(batch, tokens)
    assert sums.shape == (8,)
    torch.testing.assert_close(
        sums, torch.stack([part.sum() for part in tokens.split(batch.completion_lengths.tolist())])
    )


@pytest.mark.parametrize("plan", [PACKED, PADDED, PLAIN], ids=["packed", "padded", "plain"])
def test_prompts_get_the_logprobs_of_a_plain_forward_too(plan, make_model, groups, plain_logprobs):
    model = make_model()
    # A prompt is a completion behind its own first token.
    as_completions = [Group(g.prompt[:1], (g.prompt[1:],)) for g in groups if len(g.prompt) > 1]
    with torch.no_grad():
        expected = [plain_logprobs(model, groups), plain_logprobs(model, as_completions)]
        lengths = [len(g.prompt) - 1 for g in groups]
        scorer = scorer_for(make_model(), plan)
        batch = scorer.batch(groups, with_prompts=True)
        found = scorer(batch)
        sums = segment_sums(batch, found)
    torch.testing.assert_close(found.double(), torch.cat(expected), rtol=0, atol=1e-5)
    # 8 completions, then 4 prompts; that of a single token has nothing to predict
    prompts = torch.stack([part.sum() for part in expected[1].split(lengths)])
    assert lengths == batch.prompt_lengths.tolist() == [4, 0, 3, 2]
    torch.testing.assert_close(sums[8:].double(), prompts, rtol=0, atol=1e-5)


def test_gradients_of_scored_prompts_equal_those_of_full_logits(make_model, groups, plain_logprobs):
    plain = make_model("gpt2", dtype="float64")  # fp64 throughout
    as_completions = [Group(g.prompt[:1], (g.prompt[1:],)) for g in groups if len(g.prompt) > 1]
    values = [plain_logprobs(plain, groups), plain_logprobs(plain, as_completions)]
    expected = gradients(plain, torch.cat(values))
    for plan in (PACKED, PADDED):
        model = make_model("gpt2", dtype="float64")
        scorer = scorer_for(model, plan)
        found = gradients(model, scorer(scorer.batch(groups, with_prompts=True)))
        assert_same_gradients(found, expected, 1e-10)


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2"])
def test_collisions_are_of_the_models_own_distributions_in_every_layout(family, make_model, groups):
    changes = {"attn_logit_softcapping": None, "sliding_window": 128} if family == "gemma2" else {}
    model = make_model(family, **changes)
    rows = []
    with torch.no_grad():
        for group in groups:
            for completion in group.completions:
                logits = model(input_ids=torch.tensor([[*group.prompt, *completion]])).logits[0]
                p = logits[len(group.prompt) - 1 : -1].double().softmax(-1)
                rows.append(p.square().sum(-1).log())
    for plan in (PACKED, PADDED, PLAIN):
        scorer = scorer_for(make_model(family, **changes), plan)
        batch = scorer.batch(groups)
        found = scorer(batch, also="collisions")
        assert found.shape == (2, len(batch.targets))
        torch.testing.assert_close(found[1].double(), torch.cat(rows), rtol=0, atol=1e-5)
        torch.testing.assert_close(found[0], scorer(batch))
        # only the log-probs carry gradients
        (gradient,) = torch.autograd.grad(found.sum(), scorer.causal_model.lm_head.weight)
        (expected,) = torch.autograd.grad(scorer(batch).sum(), scorer.causal_model.lm_head.weight)
        torch.testing.assert_close(gradient, expected)


def test_a_group_scores_the_same_alone_and_beside_others(make_model, groups):
    scorer = scorer_for(make_model(dtype="float64"))
    with torch.no_grad():
        together = score(scorer, groups)
        alone = torch.cat([score(scorer, [group]) for group in groups])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


def test_plain_attention_lets_a_packed_model_generate_and_comes_back(make_model, groups):
    scorer = scorer_for(make_model())
    expected = make_model().generate(torch.tensor([[1, 5, 6]]), max_new_tokens=5, do_sample=False)
    with scorer.plain_attention():
        found = scorer.model.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=5, do_sample=False)
    assert found.tolist() == expected.tolist()
    assert scorer.plan == PACKED
    assert scorer.batch(groups).segments is not None
    score(scorer, groups)


def test_the_plan_says_in_words_how_scoring_runs_and_why():
    assert PACKED.describe() == "layout: packed shared prompts (sdpa), head: fused"
    fallen_back = ScoringPlan(False, False, "sdpa", reason="sliding window")
    assert fallen_back.describe() == "layout: padded, head: full logits; sliding window"


def test_dropout_is_back_on_after_an_evaluation_that_failed(make_model):
    scorer = scorer_for(make_model("llama")).train()

    def fail():
        with scorer.evaluating():
            assert not scorer.training
            raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        fail()
    assert scorer.training
    assert scorer.model.training


HALVES = [("float32", True), ("bfloat16", False)]


@pytest.mark.parametrize(("dtype", "autocast"), HALVES, ids=["autocast", "weights"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("plan", [PACKED, PLAIN], ids=["fused", "plain"])
def test_distributions_in_half_precision_are_of_logits_that_are_not_rounded(
    plan, adapter, dtype, autocast, make_model, groups
):
    """The factors are bf16, their product is not: held against fp64 products of those factors."""
    model = make_model(dtype=dtype, initializer_range=0.6)
    if adapter == "lora":
        model = add_lora(model, r=2, alpha=4, dropout=0.0, target_modules="lm_head")
        perturb_adapter(model)
    scorer = scorer_for(model, plan)
    scorer.sample_from(temperature=0.7, top_k=9, top_p=0.9)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        batch = scorer.batch(groups)
        found, entropy = scorer(batch, also="entropy")
        hidden, weight, _ = scorer.head_inputs(batch)
    factors = hidden.bfloat16().double(), weight.bfloat16().double()
    kept = filtered(factors[0] @ factors[1].t() / 0.7, 9, 0.9, kept=batch.targets).log_softmax(-1)
    expected = kept.gather(1, batch.targets.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(entropy.double(), entropies(kept), rtol=0, atol=1e-4)


def test_gradients_of_unrounded_half_logits_are_those_of_the_factors(make_model, groups):
    found = []
    for plan in (PACKED, PLAIN):
        model = make_model(initializer_range=0.4)
        scorer = scorer_for(model, plan)
        scorer.sample_from(temperature=0.7, top_k=9)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(gradients(model, score(scorer, groups)))
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        one, two = gradient.flatten(), found[1][name].flatten()
        assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.98, name


def test_heads_are_the_models_own_again_after_generating(make_model):
    scorer = scorer_for(make_model(dtype="bfloat16"), PLAIN)
    ids = torch.tensor([[5, 6, 7]])
    before = scorer.model(ids).logits
    with torch.no_grad(), scorer.generating():
        inside = scorer.model(ids).logits
        assert inside.dtype == torch.float32
    assert before.dtype == scorer.model(ids).logits.dtype == torch.bfloat16
    torch.testing.assert_close(inside, before.float(), rtol=2**-8, atol=2**-8)
