"""A model behind an endpoint as an annotator: it compares each pair in both orders."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from penchant.core.endpoint import Endpoint
from penchant.core.errors import ConfigError
from penchant.core.judge import read_rubric, read_settings
from penchant.core.pairwise import PLACES, RUBRIC, judge_both_orders
from penchant.data.opening import Sources
from penchant.data.records import counted
from penchant.data.rows.readable import as_text
from penchant.label.session import MAX_NAME, Session, open_session

SIDES = {"a": "left", "b": "right", "tie": "tie"}
# Pairs that are judged before the next ones are asked for.
BATCH = 128
# Hexadecimal digits that tell long names of models apart.
DIGITS = 8


@dataclass(frozen=True)
class Judged:
    """What a judge made of a file's pairs.

    Attributes:
        annotator: its name among the answers.
        answered: pairs that it judged now; before: earlier.
        contradicted: of those judged now, where the verdict followed the order: ties.
        half_preferred: likewise, where one order alone had a preference: ties too.
        failed: pairs without a verdict, which have no answer and are asked about next time.
        usage: what was asked.
        store: where the answers are.
    """

    annotator: str
    answered: int
    before: int
    contradicted: int
    half_preferred: int
    failed: int
    usage: str
    store: Path

    def summary(self) -> str:
        """Say in a few lines what was judged."""
        before = f" ({self.before} before)" if self.before else ""
        lines = [f"{self.annotator}: {counted(self.answered, 'pair')} judged{before}; {self.usage}"]
        if self.contradicted:
            share = self.contradicted / self.answered
            lines.append(
                f"in {self.contradicted} of them ({share:.0%}) the verdict followed the order of "
                "the answers: they are ties"
            )
        if self.half_preferred:
            share = self.half_preferred / self.answered
            lines.append(
                f"in {self.half_preferred} of them ({share:.0%}) an answer was preferred in one "
                "order and as good in the other: they are ties"
            )
        if self.failed:
            lines.append(
                f"{counted(self.failed, 'pair')} without a verdict: start it again to ask again"
            )
        return "\n".join([*lines, f"answers: {self.store}"])


def judge_pairs(
    file: str | Path | Sequence[str | Path],
    judge: str,
    *,
    overlap: int = 1,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Judged:
    """Have a judge answer for each pair of a file, beside what people answer.

    Each pair is shown in both orders; what is not better in both is a tie. A pair that was answered
    is not asked again, so that a judge that was stopped goes on.

    Args:
        file: pairs, as for `label`.
        judge: an address, or a YAML file with `url`, `model`, `rubric` and more.
        overlap: how many annotators answer an item, the judge among them.
        split, columns, strict: as for `label`.

    Raises:
        UserError: the endpoint does not answer, or gives no verdict on a whole batch (what was
            judged before is kept), or the file cannot be read.
    """
    settings = read_settings(judge)
    rubric = RUBRIC if settings.rubric is None else read_rubric(settings.rubric, PLACES)
    session = open_session(Sources.of(file, split, columns), overlap=overlap, strict=strict)
    if settings.cache is None:
        settings = settings.model_copy(update={"cache": _cache(session.store.path)})
    with closing(session.store), closing(settings.endpoint()) as endpoint:
        name = annotator_name(endpoint.model)
        before = session.store.num_answers(name)
        counts = _judge_open(session, endpoint, rubric, name)
    return Judged(
        name,
        counts["answered"],
        before,
        counts["contradicted"],
        counts["half_preferred"],
        counts["failed"],
        str(endpoint.usage),
        session.store.path,
    )


def annotator_name(model: str) -> str:
    """A judge's name among the annotators: two models have two names, however long theirs are."""
    name = f"judge {model}"
    if len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(model.encode()).hexdigest()[:DIGITS]
    return f"{name[: MAX_NAME - DIGITS - 1]}-{digest}"


def _judge_open(session: Session, endpoint: Endpoint, rubric: str, name: str) -> Counter[str]:
    """Have every pair judged that still lacks an answer, and count what came of it.

    Raises:
        ConfigError: no pair of a whole batch has a verdict; the few last ones may have none.
    """
    store, records = session.store, session.data.records
    counts: Counter[str] = Counter()
    failed: set[int] = set()
    while items := store.claim(name, len(records), session.overlap, BATCH, without=failed):
        reasons = []
        try:
            pairs = [records[i] for i in items]
            texts = [(as_text(p.prompt), as_text(p.chosen), as_text(p.rejected)) for p in pairs]
            verdicts = judge_both_orders(endpoint, rubric, texts)
            for item, verdict in zip(items, verdicts, strict=True):
                if verdict.side is None:
                    failed.add(item)
                    reasons.append(verdict.reason)
                    continue
                store.answer(name, item, SIDES[verdict.side], reason=verdict.reason)
                counts["answered"] += 1
                counts["contradicted"] += verdict.contradicted
                counts["half_preferred"] += verdict.half_preferred
        finally:
            store.release(name, items)
        counts["failed"] += len(reasons)
        if len(reasons) == len(items) and (len(items) == BATCH or not counts["answered"]):
            raise ConfigError(
                f"{name} gave no verdict on any of {counted(len(items), 'pair')} ({reasons[0]}); "
                f"its {counted(store.num_answers(name), 'answer')} so far are kept in "
                f"{store.path}: see to the endpoint, then start it again"
            )
    return counts


def _cache(database: Path) -> Path:
    return database.with_suffix(".judge.sqlite")
