"""Reference log-probs: the same from every source, and a cache that no kill can spoil."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from penchant.data.batch import Group, Turns, segment_sums
from penchant.models.effective import effective_weights
from penchant.models.lora import add_lora
from penchant.models.reference import AdapterReference, KeptSums, completion_keys
from penchant.models.reference_cache import CachedReference
from penchant.models.reference_copy import CopyReference, frozen_copy
from penchant.models.scoring import PLAIN, Scorer, ScoringPlan
from penchant.objectives.pair_inputs import tail_weights

PACKED = ScoringPlan(packed=True, fused_head=True, kernel="sdpa")
PADDED = ScoringPlan(packed=False, fused_head=True, kernel="sdpa")


def quiet(items, description):
    return items


def scorer_for(model, plan=PACKED):
    scorer = Scorer(model, 0)
    scorer.use(plan)
    return scorer


def cached(folder, scorer, groups, precision="fp32", batch_size=2):
    """A filled cache, and how many completions were missing."""
    reference = CachedReference(folder, scorer.causal_model, precision)
    return reference, reference.fill(groups, scorer, batch_size=batch_size, progress=quiet)


@pytest.fixture
def expected(make_model, groups, plain_logprobs):
    with torch.no_grad():
        tokens = plain_logprobs(make_model(), groups).float()
    lengths = [len(c) for group in groups for c in group.completions]
    return torch.stack([part.sum() for part in tokens.split(lengths)])


def test_adapter_copy_and_cache_give_the_base_models_sums(make_model, groups, expected, tmp_path):
    model = add_lora(make_model(), r=2, alpha=8, dropout=0.5, target_modules="all-linear")
    policy = scorer_for(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    policy.train()
    batch = policy.batch(groups)
    references = [
        AdapterReference(policy),
        CopyReference(scorer_for(make_model())),
        cached(tmp_path, scorer_for(make_model()), groups)[0],
    ]
    for reference in references:
        torch.testing.assert_close(reference.sums(groups, batch), expected, rtol=0, atol=1e-4)
    with torch.no_grad():
        trained = policy.eval()(batch)
    assert (trained.sum() - expected.sum()).abs() > 1


@pytest.mark.parametrize("whole", [None, ["lm_head"], ["embed_tokens", "lm_head"]])
def test_an_adapter_is_switched_off_as_peft_does_it(make_model, groups, whole):
    """Layers that are trained as a whole are switched by the same attribute as LoRA's."""
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=whole)
    model = get_peft_model(make_model(), config)
    policy = scorer_for(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data.normal_()
    batch = policy.batch(groups)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad(), model.disable_adapter():
        expected = policy(batch)

    def fails_with_the_adapter_off():
        with AdapterReference(policy).active() as scorer, torch.no_grad():
            assert torch.equal(scorer(batch), expected)
            raise KeyError

    with pytest.raises(KeyError):
        fails_with_the_adapter_off()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    with torch.no_grad():
        assert (policy(batch) - expected).abs().max() > 0.1


def test_the_adapter_reference_leaves_the_policy_as_it_was(make_model, groups):
    policy = scorer_for(
        add_lora(make_model(), r=2, alpha=8, dropout=0.5, target_modules="all-linear")
    ).train()
    reference = AdapterReference(policy)
    sums = reference.sums(groups, policy.batch(groups))
    assert not sums.requires_grad
    assert policy.training
    assert not any(m.disable_adapters for m in policy.modules() if hasattr(m, "lora_A"))
    with reference.active() as scorer:
        assert scorer is policy
        assert not scorer.training


def test_a_copy_stays_behind_when_the_policy_moves_and_is_never_trained(
    make_model, groups, expected
):
    policy = scorer_for(make_model()).train()
    reference = frozen_copy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)
    found = reference.sums(groups, policy.batch(groups))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    with reference.active() as scorer:
        assert not scorer.training
        assert not any(p.requires_grad for p in scorer.parameters())
    assert all(p.requires_grad for p in policy.parameters())


def perturbed_lora(model):
    lora = add_lora(model, r=2, alpha=8, dropout=0.0, target_modules="all-linear")
    torch.manual_seed(7)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return lora


def test_a_copy_of_a_policy_with_a_fresh_adapter_is_the_base_and_holds_no_adapter(
    make_model, groups, expected
):
    lora = add_lora(make_model(), r=2, alpha=8, dropout=0.5, target_modules="all-linear")
    policy = scorer_for(lora).train()
    reference = frozen_copy(policy)
    with reference.active() as scorer:
        names = [name for name, _ in scorer.named_parameters()]
        assert not isinstance(scorer.model, PeftModel)
        assert sum(p.numel() for p in scorer.parameters()) == make_model().num_parameters()
    assert not any("lora" in name or "base_layer" in name for name in names)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    found = reference.sums(groups, policy.batch(groups))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    # and the policy still has its own
    assert isinstance(policy.model, PeftModel)
    assert any(p.requires_grad for p in policy.parameters())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_a_reference_moves_towards_the_policy_by_a_share(make_model, groups, lora, alpha):
    """TR-DPO: alpha * policy + (1 - alpha) * reference, weight by weight, twice."""
    policy = scorer_for(perturbed_lora(make_model(seed=1)) if lora else make_model(seed=1))
    reference = CopyReference(scorer_for(make_model()))
    ours = {name: weight.clone() for name, weight in effective_weights(policy)}
    wanted = {name: p.clone() for name, p in make_model().named_parameters()}
    for _ in range(2):
        reference.mix_in(policy, alpha)
        wanted = {name: alpha * ours[name] + (1 - alpha) * w for name, w in wanted.items()}
    found = reference.weights()
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-7)
        assert not found[name].requires_grad
    if alpha == 1:  # the policy itself
        batch = policy.batch(groups)
        with torch.no_grad():
            sums = segment_sums(batch, policy(batch))
        torch.testing.assert_close(reference.sums(groups, batch), sums, rtol=0, atol=1e-4)


def test_a_reference_follows_a_policy_whose_experts_have_adapters(make_model):
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    model = make_model("qwen3_moe", **sizes)
    lora = add_lora(
        model,
        **{"r": 2, "alpha": 8, "dropout": 0.0, "target_modules": "q_proj"},
        target_parameters="mlp.experts.gate_up_proj,mlp.experts.down_proj",
    )
    policy = scorer_for(lora, PLAIN)
    reference = frozen_copy(policy)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    reference.mix_in(policy, 1.0)
    merged = dict(lora.merge_and_unload().named_parameters())
    found = reference.weights()
    assert found.keys() == merged.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-6)


def test_weighted_sums_count_each_token_by_its_weight(make_model, groups, plain_logprobs):
    policy = scorer_for(perturbed_lora(make_model()))
    batch = policy.batch(groups)
    weights = torch.linspace(0, 1, len(batch.targets))
    with torch.no_grad():
        tokens = plain_logprobs(make_model(), groups).float() * weights
    lengths = batch.completion_lengths.tolist()
    wanted = torch.stack([part.sum() for part in tokens.split(lengths)])
    for reference in (AdapterReference(policy), CopyReference(scorer_for(make_model()))):
        found = reference.sums(groups, batch, weights)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_cache_beside_an_adapter_still_has_a_reference_to_compare_with(
    make_model, groups, tmp_path
):
    policy = scorer_for(perturbed_lora(make_model()))
    live = AdapterReference(policy)
    reference = CachedReference(tmp_path, policy.causal_model, "fp32", live)
    with reference.active() as scorer:
        assert scorer is policy
        assert all(m.disable_adapters for m in policy.modules() if hasattr(m, "lora_A"))
    assert not any(m.disable_adapters for m in policy.modules() if hasattr(m, "lora_A"))


def test_a_cache_asks_the_model_at_hand_for_answers_that_it_does_not_know(
    make_model, groups, expected, tmp_path
):
    policy = scorer_for(perturbed_lora(make_model()))
    live = AdapterReference(policy)
    reference = CachedReference(tmp_path, policy.causal_model, "fp32", live)
    with live.active() as scorer:
        reference.fill(groups[:2], scorer, batch_size=2, progress=quiet)
    passes = []
    policy.register_forward_hook(lambda *_: passes.append(1))
    for some in (groups, groups[2:]):  # some of which it knows, and none
        found = reference.sums(some, policy.batch(some))
        torch.testing.assert_close(found, expected[-len(found) :], rtol=0, atol=1e-4)
    assert len(passes) == 2
    reference.sums(groups[:2], policy.batch(groups[:2]))
    assert len(passes) == 2


@pytest.mark.parametrize(("policy_plan", "plan"), [(PACKED, PADDED), (PADDED, PACKED)])
def test_a_copy_in_another_layout_than_the_policy_scores_the_same(
    policy_plan, plan, make_model, groups, expected
):
    policy = scorer_for(make_model(), policy_plan)
    reference = CopyReference(scorer_for(make_model(), plan))
    found = reference.sums(groups, policy.batch(groups))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_cached_sums_follow_the_groups_asked_for_in_any_order(
    make_model, groups, expected, tmp_path
):
    scorer = scorer_for(make_model())
    reference, missing = cached(tmp_path, scorer, groups)
    assert missing == len(expected) == 8
    backwards = [Group(g.prompt, g.completions[::-1]) for g in reversed(groups)]
    found = reference.sums(backwards, scorer.batch(backwards))
    torch.testing.assert_close(found, expected.flip(0), rtol=0, atol=1e-4)
    with reference.active() as model:
        assert model is None


def test_a_second_run_finds_everything_and_a_larger_one_scores_only_what_is_new(
    make_model, groups, tmp_path
):
    first, _ = cached(tmp_path, scorer_for(make_model()), groups[:2])
    values = first.sums(groups[:2], scorer_for(make_model()).batch(groups[:2]))
    again, missing = cached(tmp_path, scorer_for(make_model()), groups[:2])
    assert missing == 0
    batch = scorer_for(make_model(), PLAIN).batch(groups[:2])
    assert torch.equal(again.sums(groups[:2], batch), values)
    _, missing = cached(tmp_path, scorer_for(make_model()), groups)
    assert missing == sum(len(group.completions) for group in groups[2:])


def test_another_truncation_is_another_key(make_model, groups, plain_logprobs, tmp_path):
    """TRL's cache leaves the truncation out of its key, and so reuses wrong values."""
    scorer = scorer_for(make_model())
    cached(tmp_path, scorer, groups)
    whole = groups[0]
    shorter_completion = Group(whole.prompt, tuple(c[:-1] for c in whole.completions))
    shorter_prompt = Group(whole.prompt[1:], whole.completions)
    for changed in (shorter_completion, shorter_prompt):
        reference, missing = cached(tmp_path, scorer, [changed])
        assert missing == 2
        with torch.no_grad():
            tokens = plain_logprobs(make_model(), [changed]).float()
        sums = torch.stack([p.sum() for p in tokens.split([len(c) for c in changed.completions])])
        found = reference.sums([changed], scorer.batch([changed]))
        torch.testing.assert_close(found, sums, rtol=0, atol=1e-4)


def test_the_same_tokens_with_the_boundary_elsewhere_are_another_key(make_model, tmp_path):
    scorer = scorer_for(make_model())
    cached(tmp_path, scorer, [Group([1, 5], ([6, 7],))])
    assert cached(tmp_path, scorer, [Group([1, 5, 6], ([7],))])[1] == 1
    assert cached(tmp_path, scorer, [Group([1, 56], ([7],))])[1] == 1


def test_other_weights_or_precision_share_nothing(make_model, groups, tmp_path):
    cached(tmp_path, scorer_for(make_model()), groups)
    assert cached(tmp_path, scorer_for(make_model(seed=1)), groups)[1] == 8
    moved = make_model()
    moved.lm_head.weight.data[0, 0] += 1e-3
    assert cached(tmp_path, scorer_for(moved), groups)[1] == 8
    assert cached(tmp_path, scorer_for(make_model()), groups, precision="bf16")[1] == 8
    assert cached(tmp_path, scorer_for(make_model(dtype="bfloat16")), groups)[1] == 8
    assert cached(tmp_path, scorer_for(make_model()), groups)[1] == 0


def test_lora_and_full_training_of_one_model_share_a_cache(make_model, groups, tmp_path):
    cached(tmp_path, scorer_for(make_model()), groups)
    lora = add_lora(make_model(), r=2, alpha=8, dropout=0.0, target_modules="all-linear")
    assert cached(tmp_path, scorer_for(lora), groups)[1] == 0


def test_a_cache_needs_no_memory_that_its_processes_share(make_model, groups, tmp_path):
    """Nodes may share its folder, and none sees what SQLite's write-ahead log shares in memory."""
    scorer = scorer_for(make_model())
    path = CachedReference(tmp_path, scorer.causal_model, "fp32").path
    with closing(sqlite3.connect(path)) as database:  # as it was made by an earlier release
        database.execute("PRAGMA journal_mode = WAL")
    cached(tmp_path, scorer, groups)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_two_runs_may_fill_one_cache_at_the_same_time(make_model, groups, expected, tmp_path):
    scorer = scorer_for(make_model())
    inner = []

    def meanwhile(items, description):
        for item in items:
            yield item
            if not inner:
                inner.append(cached(tmp_path, scorer, groups))

    outer = CachedReference(tmp_path, scorer.causal_model, "fp32")
    outer.fill(groups, scorer, batch_size=1, progress=meanwhile)
    for reference in (outer, inner[0][0]):
        found = reference.sums(groups, scorer.batch(groups))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


FILL_AND_DAWDLE = """
import sys, time
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from penchant.data.batch import Group
from penchant.models.reference_cache import CachedReference
from penchant.models.scoring import Scorer

def dawdle(items, description):
    for done, item in enumerate(items):
        print(done, flush=True)
        time.sleep(0.05)
        yield item

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
scorer = Scorer(model.eval(), 0)
groups = [Group([1, i], ([i, 2], [i + 1, 2])) for i in range(3, 83)]
cache = CachedReference(Path(sys.argv[2]), model, "fp32")
cache.fill(groups, scorer, batch_size=1, progress=dawdle)
"""


@pytest.mark.slow
def test_a_cache_killed_while_it_fills_goes_on_where_it_was_and_holds_right_values(
    make_model, tmp_path, plain_logprobs
):
    make_model().save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", FILL_AND_DAWDLE, tmp_path / "model", tmp_path / "cache"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 30:
            break
    process.kill()  # SIGKILL
    assert process.wait() < 0

    scorer = scorer_for(make_model())
    groups = [Group([1, i], ([i, 2], [i + 1, 2])) for i in range(3, 83)]
    reference, missing = cached(tmp_path / "cache", scorer, groups, batch_size=16)
    assert 0 < missing < 160 - 20
    with sqlite3.connect(reference.path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM logprobs").fetchone() == (160,)
    database.close()
    with torch.no_grad():
        expected = plain_logprobs(make_model(), groups).view(-1, 2).sum(1).float()
    found = reference.sums(groups, scorer.batch(groups))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_kept_sums_are_asked_for_once_and_go_on_from_a_checkpoint(make_model, groups, tmp_path):
    base = scorer_for(make_model())
    passes = []
    base.register_forward_hook(lambda *_: passes.append(1))
    kept = KeptSums(CopyReference(base))
    first, rest = groups[:2], groups[1:]
    expected = {}
    for some in (first, rest):  # the second batch knows one of its groups
        batch = base.batch(some)
        expected[id(some)] = CopyReference(base).sums(some, batch)
        torch.testing.assert_close(kept.sums(some, batch), expected[id(some)])
    passes.clear()
    save_file(kept.state(), tmp_path / "kept")
    again = KeptSums(CopyReference(base))
    again.load_state(load_file(tmp_path / "kept"))
    everything = [*rest, *first[::-1]]
    batch = base.batch(everything)
    assert torch.equal(again.sums(everything, batch), kept.sums(everything, batch))
    assert torch.equal(again.sums(first, batch), expected[id(first)])
    assert not passes
    elsewhere = [Group([1, 5, 6, 7], ([8, *groups[0].completions[0]],))]  # the boundary has moved
    again.sums(elsewhere, base.batch(elsewhere))
    assert len(passes) == 1


def test_kept_weighted_sums_belong_to_a_whole_pair(make_model):
    """LD-DPO weighs a completion by the length of the other one."""
    base = scorer_for(make_model())
    kept = KeptSums(CopyReference(base))
    for other in ([12], [13, 14], [12]):
        pair = [Group([1, 5], ([9, 10, 11], other))]
        batch = base.batch(pair)
        weights = tail_weights(batch, 0.5)
        found = kept.sums(pair, batch, weights)
        assert torch.equal(found, CopyReference(base).sums(pair, batch, weights))


def test_what_is_trained_of_the_other_completion_is_part_of_a_pairs_key():
    whole, part = [5, 6, 7, 8], Turns((5, 6, 7, 8), ((0, 1),))
    keys = [completion_keys(Group([1], ([2, 3], o)), together=True)[0] for o in (whole, part)]
    assert keys[0] != keys[1]
    keys = [completion_keys(Group([1], ([2, 3], o)))[0] for o in (whole, part)]
    assert keys[0] == keys[1]  # alone, the other one says nothing of it
