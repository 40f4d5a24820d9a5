"""Rules over the method's numbers: rate, beta, epochs, warm-up, precision, dropout, reference."""

from __future__ import annotations

import math
from collections.abc import Iterator

from penchant.core.findings import Finding, note, warning
from penchant.guards.checks.snapshot import Snapshot

SFT_RATE = 2e-5
LORA_FACTOR = 10.0
TOLERANCE = 1.001  # numbers at the end of a range are in it, however they were computed
STRONG_BETA, NOISY_BETA, STIFF_BETA = 0.05, 0.3, 0.5
MANY_EPOCHS = 3
FEW_STEPS = 10
SLOW = 2.0  # times as long: further from 1 than a measurement on a busy machine


def rate_range(run: Snapshot) -> tuple[float, float]:
    """Sane learning rates: the method's, for LoRA about ten times higher."""
    facts = run.facts
    low, high = facts.learning_rate_range
    if not run.config.lora_r:
        return low, high
    # Some methods' usual rate for LoRA is further from that for all weights than ten times.
    factor = max(LORA_FACTOR, facts.learning_rate_lora / facts.learning_rate)
    return LORA_FACTOR * low, factor * high


def learning_rate(run: Snapshot) -> Iterator[Finding]:
    """Outside the method's range, for LoRA or for all weights."""
    rate, (low, high) = run.config.peak_learning_rate, rate_range(run)
    if run.config.optim == "sgd":
        return  # the ranges are of optimizers whose steps are as long as the rate says
    if low / TOLERANCE <= rate <= high * TOLERANCE:
        return
    kind = "LoRA" if run.config.lora_r else "all weights"
    place = "above" if rate > high else "below"
    what = f"learning_rate {rate:g} is {place} {low:g} to {high:g}, which suit {run.config.method}"
    what += f" on {kind}"
    if rate > high and not run.config.lora_r and SFT_RATE / 2 <= rate <= 5 * SFT_RATE:
        what += f"; {SFT_RATE:g} and the like are rates of supervised fine-tuning"
    facts = run.facts
    usual = facts.learning_rate_lora if run.config.lora_r else facts.learning_rate
    yield warning(
        "learning-rate",
        what,
        f"set learning_rate to {usual:g}, or leave it out: that is the method's own",
        {"learning_rate": rate, "range": [low, high], "lora": bool(run.config.lora_r)},
    )


def beta(run: Snapshot) -> Iterator[Finding]:
    """Outside the method's own range."""
    value, bounds = getattr(run.options, "beta", None), run.facts.beta_range
    if value is None or bounds is None or (value == 0 and run.config.spec.samples):
        return  # no penalty at all is a finding of its own
    low, high = bounds
    if low / TOLERANCE <= value <= high * TOLERANCE:
        return
    meaning = (
        "very conservative: the policy hardly leaves the reference"
        if value > high
        else "hardly any constraint: the policy may drift far"
    )
    if not run.config.spec.needs_reference:
        meaning = "far from the values that are known to train"
    yield warning(
        "beta",
        f"beta {value:g} is outside {low:g} to {high:g} for {run.config.method}: {meaning}",
        f"set beta within {low:g} to {high:g} (typical: {run.facts.beta})",
        {"beta": value, "range": [low, high]},
    )


def beta_noise(run: Snapshot) -> Iterator[Finding]:
    """Beta beside how clear the preferences are: 0.05 for clear ones, 0.3 for noisy ones."""
    value, signal = getattr(run.options, "beta", None), run.data.signal
    if value is None or run.facts.beta_range != (0.01, STIFF_BETA):
        return
    evidence = {"beta": value, "signal": signal}
    if signal in ("noisy", "coin toss") and value < NOISY_BETA / 2:
        yield Finding(
            "beta-noise",
            "warning" if value < STRONG_BETA else "note",
            f"the preferences are {_signal(run)}, and beta {value:g} follows them closely",
            f"set beta to {NOISY_BETA:g}, or drop the pairs that people disagree on",
            evidence,
        )
    if signal == "strong" and value >= NOISY_BETA:
        yield note(
            "beta-noise",
            f"the preferences are clear ({_signal(run)}), and beta {value:g} holds back",
            f"try beta {STRONG_BETA:g} to 0.1",
            evidence,
        )


def _signal(run: Snapshot) -> str:
    noise = run.data.noise
    votes = f"{noise.split_share:.0%} of the rated pairs not unanimous" if noise else "no votes"
    return f"{run.data.signal}: {votes}, {run.data.num('contradictions')} contradicted"


def epochs(run: Snapshot) -> Iterator[Finding]:
    """A reward model beyond one epoch; anything else beyond three."""
    if run.config.spec.samples:
        return
    passes = run.epochs
    evidence = {"epochs": round(passes, 2), "num_train_epochs": run.config.num_train_epochs}
    if run.config.spec.model == "score" and passes > 1.05:
        yield warning(
            "reward-epochs",
            f"the reward model sees its data {passes:.3g} times: it over-fits beyond once",
            "set num_train_epochs to 1 (or max_steps to one pass), and hold pairs out",
            evidence,
        )
    elif run.config.spec.model != "score" and passes > MANY_EPOCHS:
        yield note(
            "epochs",
            f"{passes:.3g} passes over the data: preferences are learned in one to "
            f"{MANY_EPOCHS}, and memorised after",
            "set num_train_epochs lower, or eval_steps with load_best_model_at_end",
            evidence,
        )


def warmup(run: Snapshot) -> Iterator[Finding]:
    """A warm-up that leaves little, or that the steps are too few for."""
    share, steps = run.config.warmup_ratio, run.num_steps
    if run.config.lr_scheduler_type == "constant" or not share:
        return
    count = math.ceil(steps * share)
    evidence = {"num_steps": steps, "warmup_steps": count}
    if count * 2 > steps:
        yield warning(
            "warmup",
            f"{count} of the {steps} steps are warm-up: the learning rate is hardly reached",
            f"set warmup_ratio to {0.1 if share > 0.1 else 0}, or train longer",
            evidence,
        )
    elif steps < FEW_STEPS:
        yield warning(
            "warmup",
            f"the run has {steps} optimizer steps, {count} of them warm-up: too few for a schedule",
            "add data, lower gradient_accumulation_steps, or raise num_train_epochs",
            evidence,
        )


def half_precision(run: Snapshot) -> Iterator[Finding]:
    """fp16 for weights that were trained in bf16, whose range is wider."""
    config = run.config
    if run.model.dtype == "bf16" and "fp16" in (config.precision, config.dtype):
        yield warning(
            "fp16-of-bf16",
            "the model was trained in bf16, whose range fp16 does not have: activations overflow",
            "set precision to bf16 or fp32 (auto chooses), and dtype to auto",
            {"saved": run.model.dtype, "precision": config.precision, "dtype": config.dtype},
        )


def emulated(run: Snapshot) -> Iterator[Finding]:
    """bf16 on a CPU that has no instructions for it."""
    factor, config = run.bf16_slowdown, run.config
    if factor is not None and factor >= SLOW:
        yield warning(
            "bf16-emulated",
            f"this CPU emulates bf16: a product takes {factor:.1f} times as long as in fp32",
            "set precision and dtype to auto or fp32; dtype bf16 is worth it only where the "
            "weights do not fit into memory otherwise",
            {"slowdown": round(factor, 1), "precision": config.precision, "dtype": config.dtype},
        )


def dropout(run: Snapshot) -> Iterator[Finding]:
    """Noise in the log-probs that are compared."""
    config, rates = run.config, run.model.dropout
    compared = "log-probs of policy and reference" if config.spec.needs_reference else "scores"
    if rates:
        shown = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        yield warning(
            "dropout",
            f"the model's configuration has dropout on ({shown}): it makes the {compared} noisy, "
            "and attention dropout switches the packed layout off",
            "set them to 0 in the model's config.json",
            dict(rates),
        )
    if config.lora_r and config.lora_dropout:
        ratios = config.spec.samples
        harm = "ratios to the policy that sampled are not 1 at the first step" if ratios else ""
        yield Finding(
            "lora-dropout",
            "warning" if ratios else "note",
            f"lora_dropout {config.lora_dropout:g} makes the policy's log-probs noisy"
            + (f": {harm}" if harm else ""),
            "set lora_dropout to 0",
            {"lora_dropout": config.lora_dropout},
        )


def second_reference(run: Snapshot) -> Iterator[Finding]:
    """A copy beside an adapter that could be switched off."""
    config = run.config
    kept = config.reference.startswith("copy") or (
        bool(config.reference_model) and config.reference != "cache"
    )
    if not (config.spec.needs_reference and config.lora_r and kept) or config.sync_ref_model:
        return
    if config.reference_model and run.model.other_reference:
        return
    yield warning(
        "second-reference",
        "an adapter is trained and a copy of the same model is held beside it as the reference: "
        "the model with its adapter switched off is that reference, for no memory",
        "set reference to auto and leave reference_model out",
        {"reference": config.reference, "reference_model": config.reference_model},
    )


def other_reference(run: Snapshot) -> Iterator[Finding]:
    """A reference that the policy does not start from."""
    config = run.config
    if config.reference_model and run.model.other_reference:
        yield warning(
            "reference-differs",
            f"reference_model {config.reference_model} is not what the policy starts from: log-"
            "ratios are not 0 at the first step, and the divergence counts from another model",
            "leave reference_model out, unless a further round against the first model is meant",
            {"reference_model": config.reference_model, "model": config.model},
        )


RULES = (
    learning_rate,
    beta,
    beta_noise,
    epochs,
    warmup,
    half_precision,
    emulated,
    dropout,
    second_reference,
    other_reference,
)
