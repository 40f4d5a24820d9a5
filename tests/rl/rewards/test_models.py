"""Reward models score samples as transformers does, apart or on the policy's own weights."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

from penchant.core.errors import ConfigError, ModelError, RewardError
from penchant.models.load import load_causal_model, load_tokenizer
from penchant.models.lora import FusedLoraLinear, add_lora
from penchant.models.scoring import Scorer, ScoringPlan
from penchant.rl.rewards.make import ModelContext, RewardOptions, Rewards, Sample, make_rewards
from penchant.rl.rewards.models import EnsembleReward
from penchant.rl.rewards.shared_adapter import SharedAdapterReward

PACKED = ScoringPlan(packed=True, fused_head=True, kernel="sdpa")
ASKED = {"Why?": ["Because.", "No idea", "So"], "And then, what?": ["Nothing."]}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return load_tokenizer(str(tiny_model_dir))


@pytest.fixture(scope="module")
def samples(tokenizer):
    """Answers that ended, and one that was cut off."""
    found = []
    for prompt, answers in ASKED.items():
        for answer in answers:
            ended = answer != "So"
            ids = tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id] * ended
            found.append(
                Sample(prompt, answer, tokenizer(prompt)["input_ids"], ids, ended, {}, "list:1")
            )
    return found


@pytest.fixture(scope="module")
def make_reward_dir(tiny_model_dir, tokenizer, tmp_path_factory):
    """Return a function that saves a random reward model, whole or as an adapter."""
    from penchant.models.score_model import load_score_model

    def make(seed, *, adapter=False, statistics=None, **lora):
        folder = tmp_path_factory.mktemp("reward") / f"judge-{seed}"
        torch.manual_seed(seed)
        model = load_score_model(str(tiny_model_dir), dtype=torch.float32)
        if adapter:
            settings = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", **lora}
            model = add_lora(model, **settings, task_type="SEQ_CLS")
            for parameter in model.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if statistics:
            (folder / "reward_statistics.json").write_text(json.dumps(statistics))
        return folder

    return make


def make(*specs, tokenizer, policy=None, base=None, batch_size=8, max_length=None,
         reads_plain=lambda _: False, **options):  # fmt: skip
    names = tuple(map(str, specs))
    chosen = RewardOptions(reward=names, **{"reward_normalization": "none", **options})
    context = ModelContext(
        tokenizer, policy, base, batch_size=batch_size, max_length=max_length,
        reads_plain=reads_plain,
    )  # fmt: skip
    return make_rewards(names, chosen, context)


@torch.no_grad()
def row_by_row(model, samples):
    """By transformers alone, one sequence at a time."""
    rows = [torch.tensor([[*one.prompt_ids, *one.completion_ids]]) for one in samples]
    model.config.pad_token_id = 0
    return [model(input_ids=row).logits.item() for row in rows]


def parameters_of(policy):
    """By the names they have before a second adapter wraps more layers."""
    return {n.replace(".base_layer.", "."): p for n, p in policy.named_parameters()}


def fresh_policy(tiny_model_dir, **lora):
    torch.manual_seed(9)
    model = load_causal_model(str(tiny_model_dir), dtype=torch.float32)
    settings = {"r": 2, "alpha": 4, "dropout": 0.1, "target_modules": "q_proj,v_proj", **lora}
    policy = add_lora(model, **settings)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return policy.train()


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "adapter"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_are_those_of_transformers(
    adapter, batch_size, make_reward_dir, load_saved, samples, tokenizer
):
    folder = make_reward_dir(1, adapter=adapter)
    rewards = make(folder, tokenizer=tokenizer, batch_size=batch_size)
    expected = row_by_row(load_saved(folder), samples)
    assert max(expected) - min(expected) > 1e-2
    for _ in range(2):  # planned once, then reused
        found = rewards.score(samples)
        assert found.raw == pytest.approx(expected, abs=1e-5)
    assert list(found.by_name) == ["judge-1"]
    assert not any("judge-1" in text for text in rewards.findings)


def test_answers_to_one_prompt_share_its_computation(make_reward_dir, samples, tokenizer):
    rewards = make(make_reward_dir(1), tokenizer=tokenizer)
    scorer, laid_out = rewards.rewards[0].scorer, []
    rewards.score(samples)
    plain = scorer.batch
    scorer.batch = lambda groups: laid_out.append(groups) or plain(groups)
    rewards.score(samples)
    assert [[len(group.completions) for group in groups] for groups in laid_out] == [[3, 1]]


def test_a_language_model_is_no_reward_model(tiny_model_dir, tokenizer):
    with pytest.raises(ModelError, match="is no reward model"):
        make(tiny_model_dir, tokenizer=tokenizer)


def test_several_labels_are_refused(make_score_model, tokenizer, tmp_path):
    make_score_model(num_labels=3).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has 3 labels"):
        make(tmp_path, tokenizer=tokenizer)


def test_the_memory_of_each_reward_model_is_told(make_reward_dir, load_saved, tokenizer):
    folder = make_reward_dir(1)
    rewards = make(folder, "length:4", tokenizer=tokenizer)
    model = load_saved(folder)
    weights = 4 * sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert rewards.held_bytes() == {"judge-1": weights + buffers}


# Scale


def test_saved_statistics_normalise_a_single_model(make_reward_dir, samples, tokenizer):
    folder = make_reward_dir(1, statistics={"mean": 0.5, "std": 0.25, "num": 10})
    rewards = make(folder, tokenizer=tokenizer, reward_normalization="auto", reward_weights=[2.0])
    found = rewards.score(samples)
    assert rewards.normalization == "saved"
    values = found.by_name["judge-1"]
    assert found.raw == pytest.approx([2 * v for v in values])
    assert found.rewards == pytest.approx([2 * (v - 0.5) / 0.25 for v in values])


def test_one_reward_without_statistics_means_running_ones(make_reward_dir, tokenizer):
    folder = make_reward_dir(1, statistics={"mean": 0.5, "std": 0.25, "num": 10})
    rewards = make(folder, "length:4", tokenizer=tokenizer, reward_normalization="auto")
    assert rewards.normalization == "running"
    with pytest.raises(ConfigError, match="length has none"):
        make(folder, "length:4", tokenizer=tokenizer, reward_normalization="saved")


@pytest.fixture
def ensemble_dir(make_reward_dir, tmp_path):
    folder = tmp_path / "judges"
    known = [{"mean": 0.1, "std": 0.5}, {"mean": -0.2, "std": 2.0}, {"mean": 0.0, "std": 1.0}]
    for i, one in enumerate(known, start=1):
        (folder / f"member-{i}").mkdir(parents=True)
        make_reward_dir(i, statistics=one).rename(folder / f"member-{i}" / "model")
    members = [f"member-{i}/model" for i in (1, 2, 3)]
    (folder / "ensemble.json").write_text(json.dumps({"members": members}))
    return folder, known


@pytest.mark.parametrize("combination", ["mean", "min", "mean_minus_std"])
def test_an_ensemble_combines_normalised_members(
    combination, ensemble_dir, load_saved, samples, tokenizer
):
    folder, known = ensemble_dir
    rewards = make(
        folder,
        tokenizer=tokenizer,
        reward_normalization="auto",
        reward_ensemble=combination,
        reward_ensemble_k=0.5,
    )
    each = torch.tensor(
        [
            [(v - one["mean"]) / one["std"] for v in row_by_row(load_saved(path), samples)]
            for one, path in zip(known, sorted(folder.glob("member-*/model")), strict=True)
        ]
    )
    deviation = each.std(0)
    expected = {
        "mean": each.mean(0),
        "min": each.min(0).values,
        "mean_minus_std": each.mean(0) - 0.5 * deviation,
    }[combination]
    found = rewards.score(samples)
    assert rewards.normalization == "saved"
    assert found.rewards == pytest.approx(expected.tolist(), abs=1e-4)
    assert found.disagreement == pytest.approx(deviation.tolist(), abs=1e-4)
    assert list(found.by_name) == ["judges"]
    assert list(rewards.held_bytes()) == ["judges/1", "judges/2", "judges/3"]


def test_an_ensemble_has_no_score_where_a_member_has_none(ensemble_dir, tokenizer):
    rewards = make(ensemble_dir[0], tokenizer=tokenizer)
    (ensemble,) = rewards.rewards
    assert isinstance(ensemble, EnsembleReward)
    (first, second), _ = ensemble.combine([[0.1, math.nan], [-0.2, 1.0], [0.0, 1.0]])
    assert first == pytest.approx(0.0)
    assert math.isnan(second)


def test_members_without_statistics_cannot_be_combined(ensemble_dir, tokenizer):
    folder, _ = ensemble_dir
    (folder / "member-2" / "model" / "reward_statistics.json").unlink()
    with pytest.raises(ModelError, match=r"member-2/model has; train the ensemble again"):
        make(folder, tokenizer=tokenizer)


# Tokenizers


def other_tokenizer(tokenizer, folder, *, vocabulary=True, template=None):
    """Save one that numbers the same bytes the other way round, or renders chats otherwise."""
    tokenizer.save_pretrained(folder)
    if vocabulary:
        file = folder / "tokenizer.json"
        saved = json.loads(file.read_text())
        bytes_ = [t for t, i in saved["model"]["vocab"].items() if i > 2]
        ids = [saved["model"]["vocab"][t] for t in bytes_]
        saved["model"]["vocab"].update(zip(bytes_, reversed(ids), strict=True))
        file.write_text(json.dumps(saved))
    other = load_tokenizer(str(folder))
    if template is not None:
        other.chat_template = template
        other.save_pretrained(folder)
    return other


def test_a_reward_model_with_another_tokenizer_reads_the_text_with_its_own(
    make_reward_dir, load_saved, samples, tokenizer
):
    folder = make_reward_dir(1)
    other = other_tokenizer(tokenizer, folder)
    rewards = make(folder, tokenizer=tokenizer)
    assert any("judge-1 has another tokenizer than the policy" in text for text in rewards.findings)
    own = [
        Sample(one.prompt, one.completion, other(one.prompt)["input_ids"],
               other(one.completion)["input_ids"] + [other.eos_token_id] * one.ended,
               one.ended, {}, one.where)
        for one in samples
    ]  # fmt: skip
    assert own[0].prompt_ids != samples[0].prompt_ids
    expected = row_by_row(load_saved(folder), own)
    assert rewards.score(samples).raw == pytest.approx(expected, abs=1e-5)


def test_another_chat_template_renders_chats_but_leaves_plain_prompts_alone(
    make_reward_dir, load_saved, samples, tokenizer
):
    folder = make_reward_dir(1)
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    other_tokenizer(tokenizer, folder, vocabulary=False, template=template)
    rewards = make(folder, tokenizer=tokenizer)
    assert any("another chat template" in text for text in rewards.findings)
    model = load_saved(folder)
    assert rewards.score(samples).raw == pytest.approx(row_by_row(model, samples), abs=1e-5)
    chat = ({"role": "user", "content": "Why?"},)
    asked = Sample(chat, "So", [5], [6], True, {}, "list:1")
    ids = tokenizer("[user]Why?[assistant]")["input_ids"]
    answer = [*tokenizer("So")["input_ids"], tokenizer.eos_token_id]
    rendered = Sample(chat, "So", ids, answer, True, {}, "list:1")
    found = rewards.score([asked]).raw
    assert found == pytest.approx(row_by_row(model, [rendered]), abs=1e-5)
    # A plain prompt that the policy was asked as a chat is one here too.
    wrapped = Sample("Why?", "So", [5], [6], True, {}, "list:1", as_chat=chat)
    assert rewards.score([wrapped]).raw == pytest.approx(found, abs=1e-5)


def test_a_reward_model_that_knows_no_chats_reads_plain_prompts_as_they_are_written(
    make_reward_dir, load_saved, tokenizer
):
    folder = make_reward_dir(1)
    other_tokenizer(tokenizer, folder, vocabulary=False, template="")
    chat = ({"role": "user", "content": "Why?"},)
    wrapped = Sample("Why?", "So", [5], [6], True, {}, "list:1", as_chat=chat)
    answer = [*tokenizer("So")["input_ids"], tokenizer.eos_token_id]
    plain = Sample("Why?", "So", tokenizer("Why?")["input_ids"], answer, True, {}, "list:1")
    found = make(folder, tokenizer=tokenizer).score([wrapped]).raw
    assert found == pytest.approx(row_by_row(load_saved(folder), [plain]), abs=1e-5)
    # So does one with the policy's own template whose run was trained on plain texts.
    tokenizer.save_pretrained(folder)
    asked = [str(folder)]
    found = make(folder, tokenizer=tokenizer, reads_plain=asked.__contains__).score([wrapped]).raw
    assert found == pytest.approx(row_by_row(load_saved(folder), [plain]), abs=1e-5)
    assert make(folder, tokenizer=tokenizer).score([wrapped]).raw != pytest.approx(found, abs=1e-5)


def test_chats_need_a_template_of_the_reward_model(make_reward_dir, tokenizer):
    folder = make_reward_dir(1)
    other_tokenizer(tokenizer, folder, template="")
    chat = ({"role": "user", "content": "Why?"},)
    asked = Sample(chat, "So", [5], [6], True, {}, "list:1")
    with pytest.raises(RewardError, match="has no chat template of its own"):
        make(folder, tokenizer=tokenizer).score([asked])


def test_samples_longer_than_the_reward_model_reads_lose_the_start_of_the_prompt(
    make_reward_dir, load_saved, tokenizer
):
    folder = make_reward_dir(1)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 8}))
    rewards = make(folder, tokenizer=tokenizer)
    long = Sample("p", "c", list(range(10, 20)), [30, 31, 32], True, {}, "list:1")
    cut = Sample("p", "c", [15, 16, 17, 18, 19], [30, 31, 32], True, {}, "list:1")
    expected = row_by_row(load_saved(folder), [cut])
    said = []
    rewards.say = said.append
    for _ in range(2):
        assert rewards.score([long, long]).raw == pytest.approx(expected * 2, abs=1e-5)
    assert said == ["reward judge-1 reads 8 tokens: longer samples lose the start of their prompt"]
    assert rewards.findings[-1:] == said


# On the policy's weights


@pytest.mark.parametrize("targets", ["q_proj,v_proj", "all-linear"])
@pytest.mark.parametrize("packed_policy", [False, True])
def test_a_shared_adapter_scores_as_the_model_by_itself(
    targets, packed_policy, make_reward_dir, tiny_model_dir, load_saved, samples, tokenizer
):
    folder = make_reward_dir(1, adapter=True)
    policy = fresh_policy(tiny_model_dir, target_modules=targets)
    scorer = Scorer(policy, 0)
    if packed_policy:
        scorer.use(PACKED)
    rewards = make(folder, tokenizer=tokenizer, policy=policy, base=str(tiny_model_dir))
    assert isinstance(rewards.rewards[0], SharedAdapterReward)
    expected = row_by_row(load_saved(folder), samples)
    for _ in range(2):
        assert rewards.score(samples).raw == pytest.approx(expected, abs=1e-5)


def test_scoring_leaves_the_policy_as_it_was(make_reward_dir, tiny_model_dir, samples, tokenizer):
    policy = fresh_policy(tiny_model_dir)
    policy.base_model.model.lm_head.eval()  # a part in another mode than the rest
    frozen = next(p for n, p in policy.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)  # and one that PEFT would switch on again
    scorer = Scorer(policy, 0)
    scorer.use(PACKED)
    names = [name for name, _ in policy.named_modules()]

    def state():
        modules, parameters = dict(policy.named_modules()), parameters_of(policy)
        reward = {n for n in parameters if ".reward." in n}
        assert not any(parameters[n].requires_grad for n in reward)
        return (
            {n: p.requires_grad for n, p in parameters.items() if n not in reward},
            {n: modules[n].training for n in names},
            policy.active_adapter,
            policy.config._attn_implementation,
            {n: p.detach().clone() for n, p in parameters.items() if n not in reward},
        )

    before = state()
    ids = torch.tensor([samples[0].prompt_ids])
    with scorer.plain_attention(), torch.no_grad():
        policy.eval()
        logits = policy(input_ids=ids).logits
        policy.train()
        policy.base_model.model.lm_head.eval()
    rewards = make(
        make_reward_dir(1, adapter=True),
        tokenizer=tokenizer,
        policy=policy,
        base=str(tiny_model_dir),
    )
    rewards.score(samples)
    after = state()
    assert after[:4] == before[:4]
    for name, value in before[4].items():
        assert torch.equal(after[4][name], value)
    with scorer.plain_attention(), torch.no_grad():
        policy.eval()
        assert torch.equal(policy(input_ids=ids).logits, logits)


def test_a_shared_adapter_adds_only_its_own_size(make_reward_dir, tiny_model_dir, tokenizer):
    policy = fresh_policy(tiny_model_dir, target_modules="all-linear")

    def total():
        return sum(p.numel() * p.element_size() for p in policy.parameters())

    before = total()
    folder = make_reward_dir(1, adapter=True)
    rewards = make(folder, tokenizer=tokenizer, policy=policy, base=str(tiny_model_dir))
    head = 32 * 4  # hidden size, in fp32
    on_disk = (folder / "adapter_model.safetensors").stat().st_size
    assert rewards.held_bytes() == {"judge-1": total() - before + head}
    assert 0 < total() - before + head <= on_disk
    layers = [m for m in policy.modules() if hasattr(m, "lora_A")]
    assert all(isinstance(m, FusedLoraLinear) for m in layers)
    assert all("reward" in m.lora_A for m in layers)


def test_several_adapters_live_on_one_policy(
    make_reward_dir, tiny_model_dir, load_saved, samples, tokenizer
):
    known = {"mean": 0.0, "std": 1.0}
    folders = [make_reward_dir(seed, adapter=True, statistics=known) for seed in (1, 2)]
    policy = fresh_policy(tiny_model_dir)
    rewards = make(*folders, tokenizer=tokenizer, policy=policy, base=str(tiny_model_dir))
    found = rewards.score(samples).by_name
    for seed, folder in zip((1, 2), folders, strict=True):
        expected = row_by_row(load_saved(folder), samples)
        assert found[f"judge-{seed}"] == pytest.approx(expected, abs=1e-5)
    assert rewards.shares_policy
    assert Rewards([EnsembleReward("both", rewards.rewards)], rewards.options).shares_policy


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"init_lora_weights": "pissa"}, "it changes its base (init_lora_weights pissa)"),
        ({"trainable_token_indices": [70, 80]}, "it changes its base (trainable_token_indices)"),
        ({"modules_to_save": ["embed_tokens"]}, "it holds layers that are trained whole"),
    ],
)
def test_an_adapter_that_is_more_than_matrices_beside_its_base_leaves_the_policy_alone(
    settings, why, make_reward_dir, tiny_model_dir, load_saved, samples, tokenizer
):
    folder = make_reward_dir(1, adapter=True, settings=settings)
    policy = fresh_policy(tiny_model_dir)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    rewards = make(folder, tokenizer=tokenizer, policy=policy, base=str(tiny_model_dir))
    assert any(why in text for text in rewards.findings)
    after = dict(policy.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    expected = row_by_row(load_saved(folder), samples)
    assert rewards.score(samples).raw == pytest.approx(expected, abs=1e-4)


def test_training_goes_on_where_it_was_after_scoring(
    make_reward_dir, tiny_model_dir, samples, tokenizer
):
    """The policy's gradients are the same whether or not a reward was scored before."""
    alone = fresh_policy(tiny_model_dir, dropout=0.0)
    judged = copy.deepcopy(alone)
    rewards = make(
        make_reward_dir(1, adapter=True),
        tokenizer=tokenizer,
        policy=judged,
        base=str(tiny_model_dir),
    )
    rewards.score(samples)
    ids = torch.tensor([samples[0].prompt_ids])
    for policy in (alone, judged):
        policy(input_ids=ids, labels=ids).loss.backward()
    others = parameters_of(judged)
    for name, parameter in parameters_of(alone).items():
        assert (parameter.grad is None) == (others[name].grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, others[name].grad)


def test_an_adapter_of_another_base_is_loaded_apart_and_said(
    make_reward_dir, tiny_model_dir, load_saved, samples, tokenizer
):
    folder = make_reward_dir(1, adapter=True)
    policy = fresh_policy(tiny_model_dir)
    rewards = make(folder, tokenizer=tokenizer, policy=policy, base="somebody/else")
    assert any("takes a model's memory of its own" in text for text in rewards.findings)
    assert not any(".reward." in name for name, _ in policy.named_parameters())
    assert not rewards.shares_policy
    expected = row_by_row(load_saved(folder), samples)
    assert rewards.score(samples).raw == pytest.approx(expected, abs=1e-5)
