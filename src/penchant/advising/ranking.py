"""Which method suits the data, the machine and the goal: points, each with its reason.

A criterion is a function of a case that returns reasons. What a criterion can see in a method's
facts and options it reads there; what is known about single methods stands in `RULES`, by
situation, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penchant.advising.findings import Findings
from penchant.advising.plan import Plan
from penchant.core.screen import gibibytes
from penchant.core.target import Machine
from penchant.data.faults import Count, fault_of
from penchant.data.records import counted
from penchant.methods import METHODS, Method

GOALS = {
    "balanced": "what the data ask for",
    "memory": "least memory: no reference model",
    "noise": "preferences that are partly wrong",
    "length": "answers that do not grow",
    "simple": "the simplest setup",
    "reward": "a reward model",
}

# What records of a kind can be read as: pairs also as labels (unpair).
READ_AS = {"pairs": ("pairs", "labels"), "labels": ("labels",), "prompts": ("prompts",)}

# The methods that sample their own answers and learn from a reward.
SAMPLING = tuple(
    name
    for name, method in METHODS.items()
    if method.samples and method.options.model_fields["reward"].is_required()
)


@dataclass(frozen=True)
class Reason:
    """Why a method gains or loses points."""

    points: float
    text: str


@dataclass(frozen=True)
class Case:
    """What a method is judged for."""

    method: Method
    findings: Findings
    machine: Machine
    plan: Plan
    goal: str


RULES: dict[str, dict[str, Reason]] = {
    "always": {
        "dpo": Reason(3, "the proven baseline: start here"),
        "kto": Reason(3, "learns from single judgements, good or bad"),
        "simpo": Reason(1.5, "often outperforms DPO, without a reference"),
        "orpo": Reason(1.5, "one model, one stage, most stable"),
        "ipo": Reason(1.5, "more stable than DPO"),
        "cpo": Reason(1, "DPO-like, with an explicit margin"),
        "robust": Reason(0.5, "DPO with the noise of the labels taken out"),
        "sigmoid_norm": Reason(0.5, "DPO on averages over tokens"),
    },
    "agreed": {
        "dpo": Reason(0.5, "clear enough for the baseline"),
    },
    "noisy": {
        "robust": Reason(3.5, "it corrects for the share of flipped labels"),
        "ipo": Reason(2, "its margins have a finite target, so wrong labels pull less"),
    },
    "biased": {
        "simpo": Reason(1, "it averages over tokens, so that length itself earns nothing"),
        "sigmoid_norm": Reason(1, "it averages over tokens, so that length itself earns nothing"),
        "ipo": Reason(0.5, "it averages log-ratios over tokens"),
        "orpo": Reason(0.5, "it compares averages over tokens"),
    },
    "strongly biased": {
        "simpo": Reason(2, "sums of log-probs would mostly learn length"),
        "sigmoid_norm": Reason(2, "sums of log-probs would mostly learn length"),
        "dpo": Reason(-1, "its rewards are sums, which mostly learn length"),
    },
    "prompts": {
        "grpo": Reason(3, "steady: answers to one prompt are compared, without a value head"),
        "rloo": Reason(2.5, "PPO's objective without its value head, with few answers per prompt"),
        "online_dpo": Reason(2, "only the order of the rewards counts, not their scale"),
        "ppo": Reason(2, "a value head credits single tokens of an answer, but is fragile"),
    },
    "few": {
        "ipo": Reason(3, "DPO over-fits few pairs, IPO stops at a finite margin"),
        "dpo": Reason(-0.5, "it over-fits few pairs"),
    },
    "deterministic": {
        "ipo": Reason(2.5, "DPO's margins grow without end where nobody disagrees, IPO's do not"),
    },
    "goal memory": {
        "orpo": Reason(2, "made for doing without a reference model"),
        "simpo": Reason(2, "made for doing without a reference model"),
    },
    "goal noise": {
        "robust": Reason(3.5, "it corrects for an assumed share of flipped labels"),
        "ipo": Reason(2, "its margins have a finite target"),
    },
    "goal length": {
        "simpo": Reason(4, "length normalisation is its point"),
        "sigmoid_norm": Reason(3.5, "DPO with length normalisation"),
        "ipo": Reason(1, "it averages log-ratios over tokens"),
    },
    "goal simple": {
        "orpo": Reason(4, "the simplest setup: no reference, no stage before"),
        "simpo": Reason(1, "no reference, but two options to tune"),
    },
    "goal reward": {
        "reward": Reason(
            12,
            "it trains the judge that a shaped reward needs: for best-of-n, or ranking "
            f"answers; {' and '.join(SAMPLING)} then train on it, given prompts",
        ),
    },
}


def situations(findings: Findings, goal: str) -> dict[str, str]:
    """Which of the situations in `RULES` hold, each with its evidence in the data's numbers."""
    held = {"always": ""}
    if findings.kind == "prompts":
        held["prompts"] = ""
    if findings.signal in ("strong", "standard"):
        held["agreed"] = noise_text(findings)
    if findings.signal in ("noisy", "coin toss"):
        held["noisy"] = noise_text(findings)
    if findings.length and findings.length.biased:
        held["biased"] = length_text(findings)
        if findings.length.strongly_biased:
            held["strongly biased"] = f"length alone tells {findings.length.accuracy:.0%}"
    if findings.few:
        held["few"] = f"only {counted(findings.num_records, findings.kind[:-1])}"
    if findings.deterministic:
        held["deterministic"] = noise_text(findings)
    if goal != "balanced":
        held[f"goal {goal}"] = f"goal {goal}"
    return held


def noise_text(findings: Findings) -> str:
    """How noisy the preferences are, in numbers."""
    parts = []
    if noise := findings.noise:
        parts.append(
            f"{noise.num_split} of {noise.num_rated} rated pairs ({noise.split_share:.0%}) are not "
            "unanimous"
        )
    if findings.num_contradicted:
        noun = findings.kind.removesuffix("s")
        count = Count(findings.num_contradicted, findings.num_records, noun)
        parts.append(fault_of("contradictions", noun).title(count))
    return ", ".join(parts) or "no votes beside the preferences"


def length_text(findings: Findings) -> str:
    """How far length tells the label."""
    assert findings.length is not None
    bias = findings.length
    longer = bias.longer_chosen >= bias.shorter_chosen
    which, count = ("longer", bias.longer_chosen) if longer else ("shorter", bias.shorter_chosen)
    return (
        f"the {which} completion is chosen in {count} of "
        f"{counted(findings.num_records, 'pair')}, and length alone tells {bias.accuracy:.0%}"
    )


def obstacle(method: Method, findings: Findings, *, scores: bool) -> str | None:
    """Why a method cannot train on these data at all, or None.

    Args:
        method: to be held against the data.
        findings: of the data.
        scores: whether the model is a reward model.
    """
    if scores and method.model == "language":
        return "the model scores text and writes none"
    if method.samples and findings.kind != "prompts":
        return "samples its own answers: give prompts as data, and a reward"
    if method.needs(method.defaults).divergence is not None:
        return "learns from a better model of the same tokenizer: name it, as teacher_model"
    if method.data not in READ_AS[findings.kind]:
        made = findings.num_possible_pairs
        if method.data != "pairs" or not made:
            return f"needs {method.data}, and these {findings.kind} cannot be read as such"
        return f"needs pairs; {made} could be made: penchant data convert --to pairs"
    if findings.num_prompts == 1 and method.needs(method.defaults).mismatches:
        return "its KL term needs completions of several prompts, and all records share one"
    return None


def by_rule(case: Case) -> list[Reason]:
    """What is known about single methods, for each situation that holds."""
    reasons = []
    for situation, evidence in situations(case.findings, case.goal).items():
        if rule := RULES[situation].get(case.method.name):
            text = f"{evidence}: {rule.text}" if evidence else rule.text
            reasons.append(Reason(rule.points, text))
    return reasons


def by_kind(case: Case) -> list[Reason]:
    """Whether it trains what is wanted, on the records as they are."""
    reasons = []
    if case.method.model == "score" and case.goal != "reward":
        reasons.append(Reason(-4, "it trains a judge of answers, not a model that writes them"))
    if case.method.data == "labels" and case.findings.kind == "pairs":
        reasons.append(
            Reason(-4, "pairs would be taken apart (unpair), and who beat whom would be lost")
        )
    return reasons


def by_specialty(case: Case) -> list[Reason]:
    """Methods for cases that no data show by themselves are not proposed for others."""
    usual = RULES["always"] | RULES["prompts"]
    if case.method.name in usual or case.method.model == "score":
        return []
    return [Reason(-1, f"a special case: {case.method.facts.when}")]


def by_smoothing(case: Case) -> list[Reason]:
    """Where labels are wrong, it helps to be able to say how many."""
    held = situations(case.findings, case.goal)
    if "label_smoothing" not in case.method.options.model_fields:
        return []
    if "noisy" in held or "goal noise" in held:
        return [Reason(1, "label_smoothing tells it the share of flipped labels")]
    return []


def by_memory(case: Case) -> list[Reason]:
    """What it takes, and what it could do without."""
    plan, machine = case.plan, case.machine
    reasons = []
    if not plan.fits:
        needs = f"{gibibytes(plan.memory.peak)} of {gibibytes(machine.usable_bytes)} usable"
        reasons.append(Reason(-6, f"does not fit: needs {needs}"))
    if case.goal == "memory" and case.method.needs_reference:
        extra = gibibytes(plan.full_reference_bytes)
        reasons.append(Reason(-2, f"needs a reference: {extra} more when all weights are trained"))
    return reasons


def by_cost(case: Case) -> list[Reason]:
    """Passes that other methods do without."""
    needs = case.method.needs(case.method.defaults)
    if needs.whole_batch or needs.mismatches:
        return [Reason(-0.5, "one more forward pass a step")]
    return []


CRITERIA: tuple[Callable[[Case], list[Reason]], ...] = (
    by_rule,
    by_kind,
    by_specialty,
    by_smoothing,
    by_memory,
    by_cost,
)


@dataclass(frozen=True)
class Ranked:
    """A method with its points, which are the sum of its reasons', and how it would be run."""

    method: str
    title: str
    points: float
    reasons: list[Reason]
    plan: Plan

    @property
    def why_not(self) -> str:
        """In one line, why others go before it: what costs it points, or what it has too little."""
        against = [reason.text for reason in self.reasons if reason.points < 0]
        return "; ".join(against) or f"fewer points; it is for: {METHODS[self.method].facts.when}"


def rank(
    findings: Findings, machine: Machine, plans: Mapping[str, Plan], goal: str
) -> list[Ranked]:
    """The methods that have a plan, best first; equals in the order of `METHODS`."""
    ranked = []
    for name, plan in plans.items():
        case = Case(METHODS[name], findings, machine, plan, goal)
        reasons = [reason for criterion in CRITERIA for reason in criterion(case)]
        reasons.sort(key=lambda reason: -reason.points)
        points = sum(reason.points for reason in reasons)
        ranked.append(Ranked(name, METHODS[name].title, points, reasons, plan))
    return sorted(ranked, key=lambda one: -one.points)
