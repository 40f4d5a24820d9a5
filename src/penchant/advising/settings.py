"""Settings to start from, each with its reason, and the command that runs them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from penchant.advising.findings import Findings
from penchant.advising.plan import MANY, Plan
from penchant.advising.ranking import noise_text
from penchant.core.commands import typeable
from penchant.data.columns import written
from penchant.data.lengths import ANSWER_LENGTH
from penchant.data.records import counted
from penchant.methods import Method
from penchant.methods.kto import BALANCE, weight_advice

# How strongly to hold on to the reference, by how clear the preferences are.
BETAS = {
    "strong": (0.05, "a strong signal"),
    "standard": (0.1, "some disagreement, as usual"),
    "unknown": (0.1, "the usual start"),
    "noisy": (0.3, "noisy preferences"),
    "coin toss": (0.5, "hardly any agreement: stay near the model"),
}
USUAL_BETA = 0.1
HELD_OUT = 200  # records for an accuracy within about 3.5 points (one standard error)
LEAST_SMOOTHING = 0.01


@dataclass(frozen=True)
class Setting:
    """A value of the configuration, and why."""

    value: float | int | str | bool
    why: str


Settings = dict[str, Setting]


def choose_settings(method: Method, findings: Findings, plan: Plan) -> Settings:
    """Everything that the data, the machine or the method decide."""
    return {
        **_training_settings(method, findings, plan),
        **_beta(method, findings),
        **_smoothing(method, findings),
        **_label_settings(method, findings),
        **_margins(method, findings),
        **_data_settings(findings),
        **_sampling_settings(method, findings),
        **_memory_settings(plan),
    }


def _training_settings(method: Method, findings: Findings, plan: Plan) -> Settings:
    facts = method.facts
    rate = facts.learning_rate_lora if plan.lora_r else facts.learning_rate
    tuned = f"LoRA of rank {plan.lora_r}" if plan.lora_r else "all weights"
    enough = findings.num_records >= MANY
    lora = "all weights do not fit" if enough else f"all weights pay from {MANY:,} records on"
    return {
        "lora_r": Setting(plan.lora_r, lora if plan.lora_r else "all weights: they fit"),
        "learning_rate": Setting(rate, f"{method.name}'s own for {tuned}"),
        "num_train_epochs": Setting(facts.num_train_epochs, "more passes over-fit preferences"),
    }


def _beta(method: Method, findings: Findings) -> Settings:
    """The table of `BETAS` where beta is a KL constraint of the usual scale, else its own."""
    field = method.options.model_fields.get("beta")
    if field is None:
        return {}
    if method.needs_reference and field.default == USUAL_BETA:
        value, why = BETAS[findings.signal]
        return {"beta": Setting(value, f"{why}: {noise_text(findings)}")}
    return {"beta": Setting(field.default, f"{method.name}'s own scale: {method.facts.beta}")}


def _smoothing(method: Method, findings: Findings) -> Settings:
    field, noise = method.options.model_fields.get("label_smoothing"), findings.noise
    if field is None or noise is None or noise.flip_probability < LEAST_SMOOTHING:
        return {}
    share = min(0.4, round(noise.flip_probability, 2))
    return {
        "label_smoothing": Setting(
            share,
            f"estimated share of wrong labels: one vote errs in {noise.vote_error:.0%}, the "
            f"majority of {noise.votes} in {noise.flip_probability:.0%}",
        )
    }


def _label_settings(method: Method, findings: Findings) -> Settings:
    if method.data != "labels":
        return {}
    settings: Settings = {}
    if findings.kind == "pairs":
        settings["unpair"] = Setting(True, "each pair is read as a good and a bad completion")
        return settings
    good = findings.num_desirable
    bad = findings.num_records - good
    if "desirable_weight" in method.options.model_fields and weight_advice(good, bad, 1, 1):
        name, weight = class_weight(good, bad)
        why = f"{good} desirable and {bad} undesirable: the weighted ratio is to be 1:1 to 4:3"
        settings[name] = Setting(weight, why)
    return settings


def class_weight(num_desirable: int, num_undesirable: int) -> tuple[str, float]:
    """The weight that lifts the rarer class to the middle of the sane ratios."""
    low, high = BALANCE
    middle = (low * high) ** 0.5
    if num_desirable > num_undesirable:
        return "undesirable_weight", float(f"{num_desirable / num_undesirable / middle:.3g}")
    return "desirable_weight", float(f"{middle * num_undesirable / num_desirable:.3g}")


def _margins(method: Method, findings: Findings) -> Settings:
    if "use_margins" not in method.options.model_fields:
        return {}
    if not 0 < findings.num_margins == findings.num_records:
        return {}
    return {"use_margins": Setting(True, "every pair says how much better its chosen one is")}


def _data_settings(findings: Findings) -> Settings:
    cut = findings.tokens.cut
    settings: Settings = {
        "max_length": Setting(
            cut.max_length, f"cuts completions of {cut.completions:.1%} of the records"
        ),
        "max_prompt_length": Setting(
            cut.max_prompt_length, f"cuts prompts of {cut.prompts:.1%} of the records"
        ),
    }
    if findings.num_prompts > 1:
        share = min(0.2, max(0.05, HELD_OUT / findings.num_records))
        held_out = counted(round(share * findings.num_records), "record")
        settings["train_fraction"] = Setting(
            round(1 - share, 2), f"holds out about {held_out}, whole prompts at a time"
        )
    return settings


def _sampling_settings(method: Method, findings: Findings) -> Settings:
    if not method.samples:
        return {}
    cut = findings.tokens.cut
    room = min(ANSWER_LENGTH, cut.max_length - cut.max_prompt_length)
    return {"max_completion_length": Setting(room, "raise it where many answers do not end by it")}


def _memory_settings(plan: Plan) -> Settings:
    settings: Settings = {
        "per_device_train_batch_size": Setting(plan.micro_batch, "what fits at once"),
        "gradient_accumulation_steps": Setting(
            plan.accumulation, f"steps of {plan.micro_batch * plan.accumulation}"
        ),
    }
    if plan.checkpointing:
        settings["gradient_checkpointing"] = Setting("on", "activations would not fit")
    if plan.reference != "auto":
        settings["reference"] = Setting(plan.reference, "a second copy would not fit")
    if plan.dtype != "auto" and not plan.lora_r:
        why = "halves weights, gradients and moments; updates are rounded at random, by torchao"
        settings["dtype"] = Setting(plan.dtype, why)
        settings["precision"] = Setting(plan.dtype, "weights in bf16 are multiplied in it")
    elif plan.dtype != "auto":
        settings["dtype"] = Setting(plan.dtype, "halves the frozen weights")
    if plan.optim != "adamw":
        package = "torchao" if "precision" in settings else "bitsandbytes"
        why = f"moments in 32 bits would not fit; needs {package}"
        settings["optim"] = Setting(plan.optim, why)
    if plan.quantization != "none":
        settings["quantization"] = Setting(
            plan.quantization, "the frozen weights would not fit otherwise; needs bitsandbytes"
        )
    return settings


def make_command(method: str, keys: Mapping[str, object], settings: Settings) -> str:
    """The command line, for a POSIX shell; one line.

    Args:
        method: its name.
        keys: model, data and what else the user gave.
        settings: as chosen.
    """
    values = {**keys, **{name: setting.value for name, setting in settings.items()}}
    words = [
        f"--{name} {shlex.quote(_written(one))}"
        for name, value in values.items()
        for one in (value if isinstance(value, list) else [value])
    ]
    return typeable(" ".join([f"penchant train {method}", *words]))


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return written(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
