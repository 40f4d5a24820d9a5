"""Advice follows from data, machine and goal, and its command can be run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.advising.advice import Advice
from penchant.advising.findings import FEW
from penchant.advising.ranking import GOALS, RULES
from penchant.advising.settings import class_weight
from penchant.cli.arguments import build_parser
from penchant.cli.main import main
from penchant.config.keys import RunConfig, load_config
from penchant.core.errors import ConfigError, ModelError, UserError
from penchant.core.target import Machine, parse_memory
from penchant.data.quality import BIASED, NOISY, STRONG, STRONGLY_BIASED
from penchant.methods import METHODS
from penchant.methods.kto import weight_advice
from penchant.models.footprint import Load, footprint
from penchant.models.rough_sizes import measure_model, sizes_of
from penchant.models.ways import divided

NAMES = (
    *("plain", "few", "noisy", "coin toss", "standard", "strong", "unanimous", "long wins"),
    *("short wins", "slightly longer", "long prompts", "labels", "mostly good"),
    *("mostly bad", "one prompt", "margins", "two", "one"),
)
Ask = Callable[..., Advice]
ROUGH: dict[str, Any] = {
    "half_base": False, "reference": False, "precision": "fp32", "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="session")
def ask_again(data_file: Callable[[str], Path], tiny_model_dir: Path) -> Ask:
    """Return a function that asks about the data of a name."""

    def advise(name: str, **keys: Any) -> Advice:
        given = {"model": tiny_model_dir, "memory": "24GiB", **keys}
        return penchant.advise(data=data_file(name), **given)

    return advise


@pytest.fixture(scope="session")
def ask(ask_again: Ask) -> Ask:
    """The same, which remembers its answers: they are what data and keys make them."""
    return cache(ask_again)


def parsed(command: str) -> RunConfig:
    """The configuration that a command would run."""
    words = shlex.split(command)
    assert words[:2] == ["penchant", "train"]
    values = vars(build_parser().parse_args(words[1:]))
    assert values.pop("command") == "train"
    return load_config(values.pop("method"), values)


@pytest.mark.parametrize("name", NAMES)
def test_command_parses_and_says_what_the_settings_say(ask: Ask, name: str) -> None:
    for goal in GOALS:
        advice = ask(name, goal=goal, memory="500MB" if goal == "noise" else "24GiB")
        config = parsed(advice.command)
        flat = config.flat()
        assert config.method == advice.best.method
        assert {name: one.value for name, one in advice.settings.items()} == {
            name: flat[name] for name in advice.settings
        }
        low, high = METHODS[config.method].facts.learning_rate_range
        assert config.lora_r or low <= config.peak_learning_rate <= high


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_ranked_or_excluded_with_a_reason(ask: Ask, name: str) -> None:
    advice = ask(name)
    named = [one.method for one in advice.ranked] + [one.method for one in advice.excluded]
    assert sorted(named) == sorted(METHODS)
    assert all(one.why for one in advice.excluded)
    for one in advice.ranked:
        assert one.points == sum(reason.points for reason in one.reasons)
        assert one.why_not
        assert "\n" not in one.why_not
    points = [one.points for one in advice.ranked]
    assert points == sorted(points, reverse=True)


@pytest.mark.parametrize(
    ("name", "goal", "best"),
    [
        ("plain", "balanced", {"dpo"}),
        ("standard", "balanced", {"dpo"}),
        ("strong", "balanced", {"dpo"}),
        ("slightly longer", "balanced", {"dpo"}),
        ("few", "balanced", {"ipo"}),
        ("unanimous", "balanced", {"ipo"}),
        ("noisy", "balanced", {"robust"}),
        ("long wins", "balanced", {"simpo"}),
        ("short wins", "balanced", {"simpo"}),
        ("labels", "balanced", {"kto"}),
        ("mostly good", "memory", {"kto"}),
        ("plain", "memory", {"orpo", "simpo"}),
        ("plain", "noise", {"robust"}),
        ("plain", "length", {"simpo"}),
        ("plain", "simple", {"orpo"}),
        ("plain", "reward", {"reward"}),
        ("few", "reward", {"reward"}),
    ],
)
def test_recommended_is_what_the_scenario_is_known_to_need(
    ask: Ask, name: str, goal: str, best: set[str]
) -> None:
    advice = ask(name, goal=goal)
    assert advice.best.method in best, advice.ranked[:3]


def test_reasons_are_in_the_numbers_of_the_data(ask: Ask) -> None:
    def reasons(name: str) -> str:
        return " ".join(reason.text for reason in ask(name).best.reasons)

    assert "160 of 400 rated pairs (40%) are not unanimous" in reasons("noisy")
    assert "the longer completion is chosen in 360 of 400 pairs" in reasons("long wins")
    assert "the shorter completion is chosen in 360 of 400 pairs" in reasons("short wins")
    assert "only 40 pairs" in reasons("few")
    assert "48 of 400 rated pairs (12%) are not unanimous" in reasons("standard")
    assert "ppo" in " ".join(reason.text for reason in ask("plain", goal="reward").best.reasons)


@pytest.mark.parametrize(
    ("name", "beta"),
    [("strong", 0.05), ("standard", 0.1), ("plain", 0.1), ("noisy", 0.3), ("coin toss", 0.5)],
)
def test_beta_rises_with_the_noise_that_the_votes_show(ask: Ask, name: str, beta: float) -> None:
    assert ask(name).settings["beta"].value == beta


def test_label_smoothing_is_the_estimated_share_of_wrong_labels(ask: Ask) -> None:
    # 40% split of three votes: d = 0.4 / 3 = e(1 - e), e = 0.1584, flipped e^2 (3 - 2e) = 0.067
    assert ask("noisy").settings["label_smoothing"].value == 0.07
    assert "label_smoothing" not in ask("plain").settings


def test_methods_on_another_scale_keep_their_own_beta(ask: Ask) -> None:
    assert ask("long wins").settings["beta"].value == 2.0


@pytest.mark.parametrize(("good", "bad"), [(300, 50), (20, 200), (1, 1000), (1000, 1), (7, 6)])
def test_class_weight_satisfies_the_methods_own_advice(good: int, bad: int) -> None:
    name, weight = class_weight(good, bad)
    weights = (weight, 1.0) if name == "desirable_weight" else (1.0, weight)
    assert weight_advice(good, bad, *weights) is None


def test_unbalanced_labels_are_weighted_and_balanced_ones_are_not(ask: Ask) -> None:
    assert "undesirable_weight" in ask("mostly good").settings
    assert "desirable_weight" in ask("mostly bad").settings
    assert not {"desirable_weight", "undesirable_weight"} & set(ask("labels").settings)


def test_labels_exclude_methods_for_pairs_and_say_so(ask: Ask) -> None:
    excluded = {one.method: one.why for one in ask("labels").excluded}
    assert "needs pairs" in excluded["dpo"]
    assert set(excluded) == {name for name, one in METHODS.items() if one.data != "labels"}


def test_one_prompt_can_train_but_not_be_held_out(ask: Ask) -> None:
    advice = ask("one prompt")
    assert "train_fraction" not in advice.settings
    assert any("share one prompt" in text for text in advice.warnings)
    assert "kto" in {one.method for one in advice.excluded}


def test_long_prompts_get_the_lengths_the_context_allows_and_a_warning(ask: Ask) -> None:
    advice = ask("long prompts")  # bytes, about 2,000 of them, for a context of 512
    cut = advice.findings.tokens.cut
    assert cut.max_length == advice.settings["max_length"].value == 512
    assert cut.prompts == 1.0
    assert any("cut 100% of the records" in text for text in advice.warnings)
    assert ask("plain").findings.tokens.cut.records <= 0.01


def test_lengths_that_the_user_gives_are_kept(ask: Ask) -> None:
    settings = ask("plain", max_length=40, max_prompt_length=24).settings
    assert (settings["max_length"].value, settings["max_prompt_length"].value) == (40, 24)
    assert (
        ask("plain", max_prompt_length=600, max_length=2000)
        .warnings[-1]
        .startswith("max_length 2000 is beyond the model's context")
    )


def test_many_records_train_all_weights_where_they_fit(
    ask_again: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask_again("plain").settings["lora_r"].value == 16
    for module in ("plan", "settings"):
        monkeypatch.setattr(f"penchant.advising.{module}.MANY", 400)
    advice = ask_again("plain")
    assert parsed(advice.command).lora_r == 0
    assert advice.settings["learning_rate"].value == METHODS["dpo"].facts.learning_rate
    assert parsed(ask_again("plain", memory="200MB").command).lora_r == 16


def test_reference_is_cached_where_a_copy_of_it_does_not_fit(
    ask_again: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.advising.plan.MANY", 400)
    monkeypatch.setattr("penchant.models.rough_sizes.OVERHEAD_BYTES", 0.0)
    size = ask_again("plain").best.plan.memory.peak
    found = [
        ask_again("plain", memory=f"{size * share / 1e5:.4f}kB") for share in range(100, 20, -8)
    ]
    for advice in found:
        config, plan = parsed(advice.command), advice.best.plan
        assert (config.reference, config.lora_r) == (plan.reference, plan.lora_r)
        assert plan.memory.parts["reference"] == 0 or (plan.reference, plan.lora_r) == ("auto", 0)
    kinds = [(one.best.plan.lora_r, one.best.plan.reference) for one in found]
    order = list(dict.fromkeys(kinds))
    assert order == [(0, "auto"), (0, "cache"), (16, "auto")]


def test_on_a_gpu_moments_get_lighter_and_then_weights_before_all_weights_are_given_up(
    ask_again: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.advising.plan.MANY", 400)
    monkeypatch.setattr("penchant.models.rough_sizes.OVERHEAD_BYTES", 0.0)
    memory = [1e12]
    monkeypatch.setattr(
        "penchant.advising.advice.find_machine",
        lambda given: Machine("cuda", int(memory[-1]), True, "bf16"),
    )
    size = ask_again("plain").best.plan.memory.peak
    seen = []
    for share in range(118, 6, -4):
        memory.append(size * share / 100)
        advice = ask_again("plain")
        config, plan = parsed(advice.command), advice.best.plan
        assert (config.optim, config.dtype) == (plan.optim, plan.dtype)
        assert config.rounds_stochastically is (plan.dtype == "bf16" and not plan.lora_r)
        seen.append((plan.lora_r, plan.dtype, plan.optim))
    steps = list(dict.fromkeys(seen))
    order = [(0, "auto", "adamw"), (0, "auto", "adamw_8bit"), (0, "bf16", "adamw"),
             (0, "bf16", "adamw_8bit"), (16, "auto", "adamw")]  # fmt: skip
    assert steps == [step for step in order if step in steps]
    assert len(steps) > 3


def test_every_pair_with_a_margin_uses_margins(ask: Ask) -> None:
    assert ask("margins", goal="reward").settings["use_margins"].value is True
    assert "use_margins" not in ask("plain", goal="reward").settings


def test_too_little_memory_is_said_in_numbers_and_what_would_do(ask: Ask) -> None:
    advice = ask("plain", memory="100MB")
    (text,) = [text for text in advice.warnings if text.startswith("nothing fits")]
    assert f"{0.85 * 1e8 / 2**30:.3g} GiB usable" in text
    assert "would do" in text
    assert not advice.best.plan.fits


def test_less_memory_is_met_by_smaller_batches_then_by_recomputing(
    ask_again: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.models.rough_sizes.OVERHEAD_BYTES", 0.0)
    free = ask_again("plain").best.plan
    assert (free.micro_batch, free.checkpointing) == (4, False)
    size = free.memory.peak
    seen = []
    for share in range(120, 10, -10):
        plan = ask_again("plain", memory=f"{size * share / 100 / 0.85 / 1e3:.4f}kB").best.plan
        assert plan.fits is (plan.memory.peak <= size * share / 100 * 1.0001)
        assert plan.micro_batch * plan.accumulation == 16
        lighter = "bf16" if plan.dtype == "bf16" else plan.quantization
        seen.append((plan.checkpointing, plan.micro_batch) if lighter == "none" else lighter)
    steps = list(dict.fromkeys(seen))
    whole = [(False, 4), (False, 2), (False, 1), (True, 4), (True, 2), (True, 1)]
    whole += ["bf16", "4bit"]
    assert steps == [step for step in whole if step in steps]
    assert {(False, 4), (False, 2)} < set(steps) and {"bf16", "4bit"} & set(steps)


def test_memory_of_a_reference_is_asked_only_of_methods_that_have_one(ask: Ask) -> None:
    plans = {one.method: one.plan for one in ask("plain").ranked}
    for name, plan in plans.items():
        assert (plan.full_reference_bytes > 0) is METHODS[name].needs_reference
        assert plan.lora_bytes < plan.full_bytes
    assert plans["dpo"].full_bytes > plans["simpo"].full_bytes


def test_model_is_measured_without_its_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    (tmp_path / "config.json").write_text((tiny_model_dir / "config.json").read_text())
    size = measure_model(str(tmp_path))
    assert size.num_parameters == sum(p.numel() for p in model.parameters())
    # two layers: q and o 32x32, k and v 32x16, gate, up and down 32x64
    assert size.width == 2 * (2 * 64 + 2 * 48 + 3 * 96)
    assert (size.context, size.num_layers, size.scores) == (512, 2, False)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "phi", "qwen3"])
def test_lora_weights_are_counted_as_they_will_be(
    family: str, make_model: Callable[..., Any], tmp_path: Path
) -> None:
    from penchant.models.lora import add_lora

    model = make_model(family)
    model.save_pretrained(tmp_path)
    size = measure_model(str(tmp_path))
    assert size.num_parameters == sum(p.numel() for p in model.parameters())
    keys: dict[str, Any] = {"alpha": 16, "dropout": 0.0, "target_modules": "all-linear"}
    adapted = add_lora(model, r=8, task_type="CAUSAL_LM", **keys)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert size.width * 8 == trained
    sizes = sizes_of(size, lora_r=8, **ROUGH)
    assert sizes.trained == 4 * trained
    assert sizes.weights == 4 * (size.num_parameters + trained)
    update = footprint(sizes, Load(0, 0)).phases["update"]
    assert (update["gradients"], update["optimizer"]) == (4 * trained, 8 * trained)


def test_activations_are_those_that_training_measures(tiny_model_dir: Path, ask: Ask) -> None:
    import torch

    from penchant.data.batch import Group
    from penchant.models.load import load_causal_model
    from penchant.models.memory import activation_bytes
    from penchant.models.scoring import Scorer
    from penchant.models.selfcheck import plan_scoring

    model: Any = load_causal_model(str(tiny_model_dir), dtype=torch.float32)
    scorer = Scorer(model.requires_grad_(True), 0)
    group = Group([5] * 100, ([6] * 50, [7] * 50))
    plan_scoring(scorer, [group], attention="auto", max_length=512)
    fixed, by_token = activation_bytes(scorer, group)
    guess = sizes_of(measure_model(str(tiny_model_dir)), lora_r=0, **ROUGH)
    assert guess.fixed + 200 * guess.by_token == pytest.approx(fixed + 200 * by_token, rel=0.5)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("24GiB", 24 * 2**30), ("16GB", 16e9), ("1.5 gib", 1.5 * 2**30), ("800MB", 8e8), ("2T", 2e12)],
)
def test_memory_is_read_with_its_unit(text: str, num_bytes: float) -> None:
    assert parse_memory(text) == num_bytes


@pytest.mark.parametrize("text", ["24", "lots", "", "-3GiB", "0GB", "GiB", "3 apples", "1e3GB"])
def test_memory_without_a_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="memory must be a size with its unit"):
        parse_memory(text)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"memory": "24"}, "memory must be a size"),
        ({"goal": "best"}, "goal must be one of balanced, memory"),
        ({"data": "no-such.jsonl"}, "no-such.jsonl"),
        ({"model": "no-such-model"}, "no such model"),
        ({"max_length": 1}, "set max_length"),
        ({"max_length": 10, "max_prompt_length": 10}, "leaves no room"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_mistake_is_named(
    change: dict[str, Any],
    told: str,
    data_file: Callable[[str], Path],
    tiny_model_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = {"data": str(data_file("few")), "model": str(tiny_model_dir), **change}
    with pytest.raises(UserError, match=told):
        penchant.advise(**keys)
    assert main(["advise", *(word for k, v in keys.items() for word in (f"--{k}", str(v)))]) == 1
    assert told in capsys.readouterr().err


def test_reward_model_can_only_go_on_scoring(
    tiny_model_dir: Path, data_file: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch

    from penchant.models.load import load_tokenizer
    from penchant.models.score_model import load_score_model

    load_score_model(str(tiny_model_dir), dtype=torch.float32).save_pretrained(tmp_path)
    load_tokenizer(str(tiny_model_dir)).save_pretrained(tmp_path)
    advice = penchant.advise(data=data_file("plain"), model=tmp_path, memory="24GiB")
    assert [one.method for one in advice.ranked] == ["reward"]
    with pytest.raises(ConfigError, match="no method can train"):
        penchant.advise(data=data_file("labels"), model=tmp_path, memory="24GiB")


def test_configuration_of_no_language_model_is_refused(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(ModelError, match="no model could be loaded"):
        measure_model(str(tmp_path))


def test_adapter_is_measured_by_what_it_stands_on(
    tiny_model_dir: Path, tmp_path: Path, tiny_keys: dict[str, Any]
) -> None:
    keys = {**tiny_keys, "max_steps": 1, "output": tmp_path / "run"}
    penchant.train("dpo", **keys)
    size = measure_model(str(tmp_path / "run" / "model"))
    assert size == measure_model(str(tiny_model_dir))
    advice = penchant.advise(data=tiny_keys["data"], model=tmp_path / "run", memory="4GiB")
    assert advice.findings.num_records == 24


def test_recommended_command_trains(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = shlex.split(ask("few").command)
    assert main([*command[1:], "--max_steps", "1", "--max_new_tokens", "2"]) == 0
    assert (tmp_path / "runs" / "ipo" / "summary.json").exists()


def test_half_precision_weights_under_lora_train_where_they_are_recommended(
    tiny_keys: dict[str, Any], tmp_path: Path
) -> None:
    keys = {**tiny_keys, "max_steps": 1, "output": tmp_path / "run", "dtype": "bf16"}
    keys["gradient_checkpointing"] = "on"
    assert penchant.train("dpo", **keys).steps == 1


def test_rows_in_memory_can_be_asked_about(tiny_model_dir: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    advice = penchant.advise(data=rows, model=tiny_model_dir, memory="4GiB")
    assert "--data DATA.jsonl" in advice.command


def test_terminal_shows_findings_three_methods_and_a_command_to_copy(
    data_file: Callable[[str], Path],
    tiny_model_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    words = ["--data", str(data_file("noisy")), "--model", str(tiny_model_dir)]
    assert main(["advise", *words, "--memory", "24GiB", "--goal", "balanced"]) == 0
    out = capsys.readouterr().out
    assert "24 GiB given" in out
    for name in METHODS:
        assert name in out
    command = out[out.rindex("penchant train") :]
    assert parsed(command.replace("\\\n", " ")).method == "robust"


def test_prompts_get_the_sampling_methods_and_a_command_with_its_reward(ask: Ask) -> None:
    """Which methods sample and learn from rewards is their own word; nothing else is advised."""
    advice = ask("prompts", reward="gsm8k")
    sampling = {
        name
        for name, method in METHODS.items()
        if method.samples and method.options.model_fields["reward"].is_required()
    }
    taught = {one.method: one.why for one in advice.excluded}["distill"]
    assert "name it, as teacher_model" in taught
    assert {one.method for one in advice.ranked} == sampling
    assert {one.method for one in advice.excluded} == set(METHODS) - sampling
    config = parsed(advice.command)
    assert config.options.reward == ("gsm8k",)  # type: ignore[attr-defined]
    assert config.max_length == 192  # 64 for the prompt, 128 for the answer
    assert not any("REWARD" in text for text in advice.warnings)
    unsaid = ask("prompts", goal="reward")
    assert "--reward REWARD" in unsaid.command
    assert any("in place of REWARD" in text for text in unsaid.warnings)
    assert any("trained on pairs" in text for text in unsaid.warnings)
    assert not {one.method for one in ask("plain").ranked} & sampling
    with pytest.raises(ConfigError, match="reward is for prompts"):
        ask("plain", reward="gsm8k")


def test_terminal_shows_prompts(
    data_file: Callable[[str], Path], tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data_file("prompts")), "--model", str(tiny_model_dir)]
    assert main(["advise", *words, "--memory", "24GiB", "--reward", "gsm8k"]) == 0
    out = capsys.readouterr().out
    assert "sampled, counted as 128 tokens" in out and "penchant train grpo" in out


def test_pairs_with_a_fault_are_not_taken_for_prompts(tiny_model_dir: Path) -> None:
    rows = [{"prompt": "p", "chosen": "", "rejected": ""}]
    with pytest.raises(UserError, match="chosen"):
        penchant.advise(data=rows, model=tiny_model_dir, memory="4GiB")


def test_terminal_shows_labels_and_free_memory(
    data_file: Callable[[str], Path], tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data_file("mostly good")), "--model", str(tiny_model_dir)]
    assert main(["advise", *words]) == 0
    out = capsys.readouterr().out
    assert "300 desirable, 50 undesirable" in out
    assert "free now" in out


def test_json_is_the_whole_advice(
    data_file: Callable[[str], Path], tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data_file("noisy")), "--model", str(tiny_model_dir)]
    assert main(["advise", *words, "--memory", "24GiB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recommended"] == found["ranked"][0]["method"] == "robust"
    assert found["findings"]["noise"]["num_split"] == 160
    assert found["findings"]["signal"] == "noisy"
    assert found["machine"]["usable_bytes"] == pytest.approx(0.85 * 24 * 2**30)
    assert len(found["ranked"]) + len(found["excluded"]) == len(METHODS)
    assert parsed(found["command"]).method == "robust"


def test_rules_name_methods_that_exist() -> None:
    assert {name for rules in RULES.values() for name in rules} <= set(METHODS)
    assert {situation[5:] for situation in RULES if situation.startswith("goal ")} == (
        set(GOALS) - {"balanced"}
    )


def test_documentation_has_every_rule_and_threshold() -> None:
    page = (Path(__file__).parents[2] / "docs" / "advise.md").read_text(encoding="utf-8")
    for situation, rules in RULES.items():
        for name, rule in rules.items():
            assert f"| {situation} | {name} | {rule.points:+g} | {rule.text} |" in page
    for number in (f"{STRONG:.0%}", f"{NOISY:.0%}", f"{BIASED:.0%}", f"{STRONGLY_BIASED:.0%}"):
        assert number in page
    assert f"fewer than {FEW}" in page
    for goal, text in GOALS.items():
        assert f"| {goal} | {text} |" in page


def test_processes_that_divide_the_weights_hold_parts_and_a_pass_has_layers_whole(
    tiny_model_dir: Path,
) -> None:
    size = measure_model(str(tiny_model_dir))
    alone = sizes_of(size, lora_r=0, **ROUGH)
    one_of_four = divided(alone, 4)
    assert (one_of_four.weights, one_of_four.trained) == (alone.weights / 4, alone.trained / 4)
    ends = 4.0 * (size.num_parameters - size.num_layer_parameters)
    assert one_of_four.whole == ends + 2 * 4.0 * size.num_layer_parameters / size.num_layers
    load = Load(tokens=8, predicted=4)
    state = footprint(alone, load).parts["optimizer"]
    assert footprint(one_of_four, load).parts["optimizer"] == state / 4
    on_gpu = divided(replace(alone, device="cuda"), 4, offload=True)
    held = footprint(on_gpu, load).parts
    assert held["weights"] == held["optimizer"] == 0  # a pass has what it has whole all the same
    assert held["activations"] >= one_of_four.whole
