"""How a reward model ranks the answers of a benchmark, or of pairs: by subset, with intervals."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from penchant.commands.opened import Opened, open_model, plan
from penchant.core.errors import ConfigError
from penchant.core.evaluation import Evaluation
from penchant.core.machine import out_of_memory_explained
from penchant.core.ranking import Ranked, Ranking, rank, right_share, ties_score
from penchant.core.screen import track
from penchant.data.batch import Group
from penchant.data.benchmarks import BY_SUBSET, Question, read_questions
from penchant.data.opening import Sources
from penchant.data.records import Data, Label, Text, counted, is_chat, prompt_key
from penchant.data.rows.messages import contents
from penchant.data.tokenised import TokenisedLabel
from penchant.methods.inputs import ScoreInputs
from penchant.objectives.held_out import batches
from penchant.objectives.scores import score_evaluation
from penchant.training.kind import kind_of

logger = logging.getLogger("penchant")

# The name of the numbers over several sources.
ALL = "all"


@dataclass(frozen=True)
class Benchmark:
    """What a reward model makes of one source.

    Attributes:
        ranking: accuracy by subset, with intervals.
        evaluation: means over all answers; where all questions are pairs, also loss, margin and
            calibration.
    """

    ranking: Ranking
    evaluation: Evaluation


def benchmark(*, model: str | Path, data: Any, batch_size: int = 8, **keys: Any) -> Benchmark:
    """How a reward model ranks answers: RewardBench 1 and 2, JudgeBench, LLMBar, or any pairs.

    Args:
        model: a reward model: a run directory, a folder, a hub id or an adapter.
        data: rows in the layout of one of these benchmarks, or pairs; a column `subset` names
            their subsets.
        batch_size: questions per forward pass.
        keys: as for `evaluate`.

    Raises:
        UserError: a wrong key, bad data, or a model that is no reward model.
    """
    return benchmark_each({"": data}, model=model, batch_size=batch_size, **keys)[""]


def benchmark_each(
    sources: Mapping[str, Any], *, model: str | Path, batch_size: int = 8, **keys: Any
) -> dict[str, Benchmark]:
    """As `benchmark`, of several sources by name; of more than one also `ALL` of them together."""
    opened = open_model(model, batch_size, keys)
    if opened.config.spec.model != "score":
        raise ConfigError(f"{model} is no reward model; penchant evaluate --prompts measures it")
    return rank_opened(opened, sources, batch_size)


@out_of_memory_explained("answers were scored", "set a lower batch_size, or a lower max_length")
def rank_opened(
    opened: Opened, sources: Mapping[str, Any], batch_size: int
) -> dict[str, Benchmark]:
    """As `benchmark_each`, of a reward model that is found already."""
    data = {name: _read(opened, source) for name, source in sources.items()}
    scored = _Scored(opened, batch_size)
    with opened.accelerator.autocast():
        scores = scored([one for some in data.values() for one in some.records])
    asked: dict[str, list[tuple[Question, list[float]]]] = {}
    for name, some in data.items():
        asked[name] = list(zip(some.records, scores[: len(some.records)], strict=True))
        scores = scores[len(some.records) :]
    if len(data) > 1:
        asked[ALL] = [one for some in asked.values() for one in some]
    return {
        name: Benchmark(ranking, scored.evaluation(asked[name]))
        for name, ranking in rankings_of(asked, data).items()
    }


def rankings_of(
    asked: Mapping[str, Sequence[tuple[Question, Sequence[float]]]],
    data: Mapping[str, Data[Question]],
) -> dict[str, Ranking]:
    """The ranking of each source; those without any score are named and left out.

    Args:
        asked: questions with the scores of their answers, by the name of the source.
        data: the sources that were read, whose layouts say what their totals are.

    Raises:
        ConfigError: no source has any score.
    """
    by_subset = {name for name, some in data.items() if set(some.layouts) & set(BY_SUBSET)}
    ranked = {name: _ranked(some) for name, some in asked.items()}
    known = {
        name: some
        for name, some in ranked.items()
        if not all(math.isnan(one.right) for one in some)
    }
    if not known:
        names = ", ".join(name for name in asked if name not in ("", ALL)) or "the data"
        raise ConfigError(f"no question of {names} has scores of all its answers")
    for name in ranked:
        if name not in known:
            logger.warning("%s is not measured: no question has scores of all its answers", name)
    return {name: rank(some, mean_of_subsets=name in by_subset) for name, some in known.items()}


def _ranked(asked: Sequence[tuple[Question, Sequence[float]]]) -> list[Ranked]:
    """What the scores of each question's answers say of it; Ties are joined with their twins."""
    plain = [one for one in asked if one[0].twin is None]
    ranked = [
        Ranked(
            right_share(scores, question.num_correct),
            _longer(question),
            prompt_key(question),
            question.subset,
        )
        for question, scores in plain
    ]
    return ranked + _ties(asked)


def _ties(asked: Sequence[tuple[Question, Sequence[float]]]) -> list[Ranked]:
    """RewardBench 2's Ties: each question with many right answers beside its twin with one."""
    twins: dict[str, dict[str, tuple[Question, Sequence[float]]]] = {}
    for one in asked:
        if (twin := one[0].twin) is not None:
            twins.setdefault(twin[1], {})[twin[0]] = one
    alone = [number for number, both in twins.items() if len(both) < 2]
    if alone:
        logger.warning(
            "%s of Ties without a twin left out, the first %s", counted(len(alone), "question"),
            alone[0],
        )  # fmt: skip
    return [
        Ranked(
            ties_score(tied[1], tied[0].num_correct, ref[1], ref[0].num_correct),
            math.nan,
            number,
            tied[0].subset,
        )
        for number, both in twins.items()
        if len(both) == 2
        for tied, ref in [(both["tied"], both["ref"])]
    ]


def _longer(question: Question) -> float:
    """By how many characters right answers are longer than the others, on average."""
    lengths = [sum(map(len, contents(one))) for one in question.completions]
    right, wrong = lengths[: question.num_correct], lengths[question.num_correct :]
    return sum(right) / len(right) - sum(wrong) / len(wrong)


def _read(opened: Opened, source: Any) -> Data[Question]:
    config = opened.config
    sources = Sources.of(source, config.split, config.columns)
    data = read_questions(sources, strict=config.strict)
    logger.info("%s", data.summary())
    if all(len(question.completions) == 2 for question in data.records):
        kind_of(config.spec).require(config, data.records)  # their loss is reported too
    return data


class _Scored:
    """Scores questions with a reward model.

    Args:
        opened: the model; its weights are loaded once the questions are tokenised.
        batch_size: questions in a forward pass.
    """

    def __init__(self, opened: Opened, batch_size: int) -> None:
        self.opened, self.batch_size = opened, batch_size
        self.as_chat = opened.why_plain() is None

    @torch.no_grad()
    def __call__(self, questions: Sequence[Question]) -> list[list[float]]:
        """The score of each answer, by question; NaN where an answer has no tokens."""
        examples = self._examples(questions)
        scores = [[math.nan] * len(one.completions) for one in questions]
        config, model = self.opened.config, self.opened.load(keep_adapter=True)
        scorer = kind_of(config.spec).scorer(config, model, self.opened.pad_token_id)
        plan(scorer, [example.group() for example in examples[:2]], config)
        explained = out_of_memory_explained("answers were scored", "set a lower batch_size")
        with scorer.evaluating(), explained:
            for some, _ in batches(examples, self.batch_size, track):
                found = iter(scorer(scorer.batch([e.group() for e in some])).tolist())
                for example in some:
                    for place in example.places:
                        scores[example.number][place] = next(found)
        return scores

    def evaluation(self, asked: Sequence[tuple[Question, Sequence[float]]]) -> Evaluation:
        """Means over all answers, and of pairs what training reports."""
        known = [(q, scores) for q, scores in asked if not any(map(math.isnan, scores))]
        right = [right_share(scores, q.num_correct) for q, scores in known]
        flat = torch.tensor([one for _, scores in known for one in scores], dtype=torch.float64)
        if any(len(scores) != 2 for _, scores in known) or not known:
            return Evaluation(
                num_examples=len(known),
                accuracy=sum(right) / len(right) if right else None,
                score_mean=float(flat.mean()),
                score_std=float(flat.std(correction=0)),
            )
        margins = [q.margin for q, _ in known if q.margin is not None]
        chosen, rejected = torch.tensor([scores for _, scores in known]).unbind(1)
        margin = torch.tensor(margins) if len(margins) == len(known) else None
        inputs = ScoreInputs(chosen, rejected, margin)
        config = self.opened.config
        return score_evaluation(inputs, config.spec.loss(inputs, config.options))

    def _examples(self, questions: Sequence[Question]) -> list[_Example]:
        places: dict[str, tuple[int, int]] = {}
        labels = []
        for number, question in enumerate(questions):
            for place, completion in enumerate(question.completions):
                where = f"{question.where}, answer {place + 1} of question {number + 1}"
                places[where] = number, place
                asked, said = self._asked(question.prompt), self._said(completion)
                labels.append(Label(asked, said, True, where))
        tokenised, report = self.opened.tokeniser().labels(track(labels, "tokenising answers"))
        logger.info("answers: %s", report.summary())
        grouped: dict[tuple[int, tuple[int, ...]], list[tuple[int, TokenisedLabel]]] = {}
        for one in tokenised:
            number, place = places[one.where]
            grouped.setdefault((number, tuple(one.prompt)), []).append((place, one))
        if not grouped:
            raise ConfigError(f"no answer is left after tokenising ({report.summary()})")
        return [
            _Example(number, [place for place, _ in some], [one for _, one in some])
            for (number, _), some in grouped.items()
        ]

    def _asked(self, prompt: Text) -> Text:
        return ({"role": "user", "content": str(prompt)},) if self._wraps(prompt) else prompt

    def _said(self, completion: Text) -> Text:
        wraps = self._wraps(completion)
        return ({"role": "assistant", "content": str(completion)},) if wraps else completion

    def _wraps(self, text: Text) -> bool:
        """Whether a plain text goes through the chat template, as the model was trained."""
        return self.as_chat and not is_chat(text)


@dataclass(frozen=True)
class _Example:
    """Answers of one question that share their prompt's tokens, and their places in it."""

    number: int
    places: list[int]
    answers: list[TokenisedLabel]

    def group(self) -> Group:
        """For the batch: the prompt once."""
        return Group(self.answers[0].prompt, tuple(one.completion for one in self.answers))
