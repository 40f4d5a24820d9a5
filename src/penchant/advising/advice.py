"""From data, model and machine to advice."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penchant.advising.findings import Findings, find
from penchant.advising.plan import Planner
from penchant.advising.ranking import GOALS, Ranked, noise_text, obstacle, rank
from penchant.advising.settings import Settings, choose_settings, make_command
from penchant.config.keys import RunConfig, load_config
from penchant.core.errors import ConfigError
from penchant.core.machine import USABLE
from penchant.core.screen import gibibytes
from penchant.core.target import Machine, find_machine, parse_memory
from penchant.data.lengths import UNCUT, sample_lengths
from penchant.data.opening import MissingDataError, Sources
from penchant.data.prompts import PROMPT_LAYOUTS, Prompt, read_prompts
from penchant.data.quality import FEW
from penchant.data.read import OtherKindError, read_pairs
from penchant.data.read_labels import read_labels
from penchant.data.records import Data, DataError, counted
from penchant.methods import METHODS, Method
from penchant.models.rough_sizes import ModelSize, measure_model

NUM_SHOWN = 3
PLACEHOLDER = "REWARD"  # in a command, where the user has not said what judges answers
MANY_CUT = 0.02  # share of records


@dataclass(frozen=True)
class Excluded:
    """A method that cannot train on these data, and why."""

    method: str
    why: str


@dataclass(frozen=True)
class Advice:
    """What was found, and what follows from it.

    Attributes:
        goal: as asked for.
        findings, model, machine: of the data, of the model, and where it would run.
        ranked: the methods that could be trained, best first; excluded: the others.
        settings: for the first of them, each with its reason.
        command: that runs it with these settings.
        warnings: what to know before.
    """

    goal: str
    findings: Findings
    model: ModelSize
    machine: Machine
    ranked: list[Ranked]
    excluded: list[Excluded]
    settings: Settings
    command: str
    warnings: list[str]

    @property
    def best(self) -> Ranked:
        """The method recommended."""
        return self.ranked[0]

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON; what follows from counts is there too."""
        values = asdict(self)
        values["findings"]["signal"] = self.findings.signal
        if noise := self.findings.noise:
            values["findings"]["noise"]["split_share"] = noise.split_share
        if length := self.findings.length:
            derived = {"longer_share": length.longer_share, "accuracy": length.accuracy}
            values["findings"]["length"] |= {**derived, "biased": length.biased}
        values["machine"]["usable_bytes"] = self.machine.usable_bytes
        for entry, one in zip(values["ranked"], self.ranked, strict=True):
            memory = one.plan.memory
            entry["plan"]["memory"] = {**memory.parts, "total": memory.peak}
            entry["why_not"] = one.why_not
        values["recommended"] = self.best.method
        return values


def make_advice(
    data: Any, keys: dict[str, Any], *, memory: str | None, goal: str, reward: str | None = None
) -> Advice:
    """`penchant.advise` with the keys of a configuration that the user gave."""
    if goal not in GOALS:
        raise ConfigError(f"goal must be one of {', '.join(GOALS)}, got {goal!r}; set goal")
    memory_bytes = None if memory is None else parse_memory(memory)
    config = load_config("dpo", {"max_length": UNCUT, **keys})
    source = _read(Sources.of(data, config.split, config.columns))
    findings, size, planner = _measure(source, config, keys, memory_bytes)
    ranked, excluded = _ranked(planner, goal)
    best = METHODS[ranked[0].method]
    if reward is not None and not best.samples:
        raise ConfigError(
            f"reward is for prompts, whose answers it judges, not for {findings.kind}"
        )
    if best.samples:
        keys = {**keys, "reward": reward or PLACEHOLDER}
    settings = choose_settings(best, findings, ranked[0].plan)
    keys = {**keys, "output": Path("runs") / best.name}
    load_config(best.name, {**keys, **{name: one.value for name, one in settings.items()}})
    return Advice(
        goal=goal,
        findings=findings,
        model=size,
        machine=planner.machine,
        ranked=ranked,
        excluded=excluded,
        settings=settings,
        command=make_command(best.name, keys, settings),
        warnings=[
            *_data_warnings(findings),
            *_prompt_warnings(source, goal, reward),
            *_fit_warnings(planner, best, ranked[0], config),
        ],
    )


def _read(data: Sources) -> Data[Any]:
    """Pairs, labels, or prompts where the rows hold no judged answer."""
    try:
        return read_pairs(data)
    except OtherKindError:
        return read_labels(data)
    except MissingDataError:
        raise
    except DataError as error:
        try:
            prompts = read_prompts(data)
        except DataError:
            raise error from None
        if not {*prompts.layouts} <= {layout.name for layout in PROMPT_LAYOUTS}:
            raise  # pairs or labels with a fault, not prompts
        return prompts


def _measure(
    source: Data[Any],
    config: RunConfig,
    keys: dict[str, Any],
    memory_bytes: int | None,
) -> tuple[Findings, ModelSize, Planner]:
    """Tokenise a sample and size the model."""
    from penchant.core.screen import setup_logging
    from penchant.models.load import load_tokenizer
    from penchant.models.locate import resolve

    setup_logging()
    base, trust = resolve(config.model), config.trust_remote_code
    tokenizer = load_tokenizer(base, chat_template=config.chat_template, trust_remote_code=trust)
    size = measure_model(base, trust_remote_code=trust)
    records = source.records
    sample = sample_lengths(records, tokenizer)
    given = (keys.get("max_length"), keys.get("max_prompt_length"))
    findings = find(source, sample.lengths(size.context, *given))
    return findings, size, Planner(size, sample, findings, find_machine(memory_bytes))


def _ranked(planner: Planner, goal: str) -> tuple[list[Ranked], list[Excluded]]:
    plans, excluded = {}, []
    for name, method in METHODS.items():
        why = obstacle(method, planner.findings, scores=planner.size.scores)
        if why is None:
            plans[name] = planner.plan(method)
        else:
            excluded.append(Excluded(name, why))
    if not plans:
        reasons = dict.fromkeys(f"{one.why} ({one.method})" for one in excluded)
        raise ConfigError(f"no method can train on {planner.findings.source}: {'; '.join(reasons)}")
    return rank(planner.findings, planner.machine, plans, goal), excluded


def _data_warnings(findings: Findings) -> list[str]:
    warnings = []
    if findings.few:
        records = counted(findings.num_records, findings.kind[:-1])
        warnings.append(
            f"only {records}: too few to learn from or to measure on; collect at least {FEW}, "
            "better 1,000"
        )
    if findings.num_prompts == 1:
        warnings.append("all records share one prompt: none can be held out; add eval_data")
    if findings.num_contradicted:
        warnings.append(f"contradictions: {noise_text(findings)}; remove those people disagree on")
    if findings.num_refused:
        warnings.append(f"{counted(findings.num_refused, 'row')} refused; training says why")
    if findings.tokens.num_dropped:
        dropped = counted(findings.tokens.num_dropped, "sampled record")
        warnings.append(f"{dropped} cannot be tokenised and will be dropped")
    cut = findings.tokens.cut
    if cut.records > MANY_CUT:
        warnings.append(
            f"max_length {cut.max_length} and max_prompt_length {cut.max_prompt_length} cut "
            f"{cut.records:.0%} of the records"
        )
    return warnings


def _prompt_warnings(source: Data[Any], goal: str, reward: str | None) -> list[str]:
    prompts = [record for record in source.records if isinstance(record, Prompt)]
    if not prompts:
        return []
    warnings = []
    if reward is None:
        warnings.append(
            "a reward judges the answers: put a reward model or function in place of "
            f"{PLACEHOLDER}, such as gsm8k or file.py:function, or give --reward"
        )
    if goal == "reward":
        warnings.append("a reward model is trained on pairs, and these are prompts")
    columns = sorted({name for prompt in prompts for name in prompt.fields})
    if columns:
        warnings.append(
            f"read as prompts to answer; the other columns ({', '.join(columns)}) are only handed "
            "to reward functions. If they hold judged answers, name these with --columns"
        )
    return warnings


def _fit_warnings(planner: Planner, method: Method, best: Ranked, config: RunConfig) -> list[str]:
    context, cut = planner.size.context, planner.findings.tokens.cut
    warnings = []
    if context and cut.max_length > context:
        warnings.append(f"max_length {cut.max_length} is beyond the model's context of {context}")
    if best.plan.fits:
        return warnings
    machine, memory = planner.machine, best.plan.memory
    kind = f"LoRA of rank {best.plan.lora_r}" if best.plan.lora_r else "all weights"
    parts = memory.parts
    text = (
        f"nothing fits: the smallest way, {kind} with batches of {best.plan.micro_batch}, needs "
        f"about {gibibytes(memory.peak)} (weights {gibibytes(parts['weights'])}, activations "
        f"{gibibytes(parts['activations'])}) of {gibibytes(machine.usable_bytes)} usable"
    )
    shorter = planner.half_length(method, best.plan)
    if shorter.fits:
        half = planner.findings.tokens.cut.max_length // 2
        text += f"; max_length {half} would do with {gibibytes(shorter.memory.peak)}"
    else:
        text += f"; a smaller model, or {gibibytes(memory.peak / USABLE)} of memory, would do"
    return [*warnings, text]
