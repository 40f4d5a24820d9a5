"""How far a judge can be trusted: its verdicts on pairs of which the better answer is known."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from penchant.commands.benchmark import ALL, rankings_of
from penchant.core.asking import Usage
from penchant.core.errors import ConfigError
from penchant.core.judge import read_settings
from penchant.core.pairwise import Verdict, judge_both_orders, rubric_of
from penchant.core.ranking import Ranking
from penchant.core.screen import setup_logging
from penchant.data.benchmarks import Question, read_questions
from penchant.data.opening import Sources
from penchant.data.records import counted
from penchant.data.rows.readable import as_text

logger = logging.getLogger("penchant")

# Scores that say what a verdict does: equal ones are a tie, which counts half.
SCORES = {"a": (1.0, 0.0), "b": (0.0, 1.0), "tie": (0.0, 0.0), None: (math.nan, math.nan)}


@dataclass(frozen=True)
class JudgeBenchmark:
    """What a judge made of one source.

    Attributes:
        judge: its name.
        ranking: accuracy by subset; a tie counts half.
        contradicted: pairs whose verdict followed the order of the answers, which are ties.
        half_preferred: pairs with a preference in one order and a tie in the other, likewise ties.
        unjudged: pairs without a verdict, which are left out.
        usage: what was asked of these pairs, and what it cost.
    """

    judge: str
    ranking: Ranking
    contradicted: int
    half_preferred: int
    unjudged: int
    usage: str

    @property
    def note(self) -> str:
        """What else should be known, in words."""
        lines = [f"{self.judge}: {self.usage}"]
        if self.contradicted:
            verdicts = counted(self.contradicted, "verdict")
            lines.append(f"{verdicts} followed the order: counted as ties, half right")
        if self.half_preferred:
            verdicts = counted(self.half_preferred, "preference")
            lines.append(f"{verdicts} in one order only: counted as ties, half right")
        if self.unjudged:
            lines.append(f"{counted(self.unjudged, 'pair')} without a verdict left out")
        return "\n".join(lines)


def judge_each(
    sources: Mapping[str, Any],
    judge: str,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
) -> dict[str, JudgeBenchmark]:
    """Have a judge compare the pairs of several sources, each in both orders.

    Args:
        sources: JudgeBench, LLMBar, or any pairs, by the name that their numbers get.
        judge: an address, or a YAML file with `url`, `model`, `rubric` and more.
        split, columns, strict: as for reading pairs.

    Returns:
        By name; of more than one source also `ALL`.

    Raises:
        UserError: the judge does not answer, data cannot be read, or have more than two answers.
    """
    setup_logging()
    settings = read_settings(judge)
    rubric = rubric_of(settings)
    data = {}
    for name, source in sources.items():
        data[name] = read_questions(Sources.of(source, split, columns), strict=strict)
        logger.info("%s", data[name].summary())
        _require_pairs(data[name].records)
    endpoint = settings.endpoint()
    asked: dict[str, list[tuple[Question, Verdict]]] = {}
    used: dict[str, Usage] = {}
    for name, some in data.items():
        texts = [
            (as_text(one.prompt), as_text(one.completions[0]), as_text(one.completions[1]))
            for one in some.records
        ]
        before = replace(endpoint.usage)
        verdicts = judge_both_orders(endpoint, rubric, texts)
        used[name] = endpoint.usage - before
        asked[name] = list(zip(some.records, verdicts, strict=True))
    endpoint.close()
    if len(data) > 1:
        asked[ALL] = [one for some in asked.values() for one in some]
        used[ALL] = endpoint.usage
    scored = {name: [(q, SCORES[v.side]) for q, v in some] for name, some in asked.items()}
    return {
        name: _concluded(endpoint.model, ranking, [v for _, v in asked[name]], used[name])
        for name, ranking in rankings_of(scored, data).items()
    }


def _require_pairs(questions: Sequence[Question]) -> None:
    for one in questions:
        if len(one.completions) != 2:
            raise ConfigError(
                f"{one.where} has {len(one.completions)} answers, and a judge compares two; "
                "measure what scores one answer with --model"
            )


def _concluded(
    model: str, ranking: Ranking, verdicts: Sequence[Verdict], used: Usage
) -> JudgeBenchmark:
    return JudgeBenchmark(
        f"judge {model}",
        ranking,
        sum(verdict.contradicted for verdict in verdicts),
        sum(verdict.half_preferred for verdict in verdicts),
        sum(verdict.side is None for verdict in verdicts),
        str(used),
    )
