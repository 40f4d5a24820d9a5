"""A model behind an endpoint as an annotator: it compares each pair in both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penchant.core.judge import read_rubric, read_settings
from penchant.core.pairwise import PLACES, RUBRIC, Verdict, judge_both_orders
from penchant.data.opening import Sources
from penchant.data.records import counted
from penchant.data.rows.readable import as_text
from penchant.label.session import MAX_NAME, open_session

SIDES = {"a": "left", "b": "right", "tie": "tie", None: "skip"}
BATCH = 128


@dataclass(frozen=True)
class Judged:
    """What a judge made of a file's pairs.

    Attributes:
        annotator: its name among the answers.
        answered: pairs that it judged now; before: earlier.
        contradicted: of those, where the verdict followed the order; they count as ties.
        failed: pairs without a verdict, which are skipped.
        usage: what was asked.
        store: where the answers are.
    """

    annotator: str
    answered: int
    before: int
    contradicted: int
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
        if self.failed:
            lines.append(f"{counted(self.failed, 'pair')} without a verdict, skipped")
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

    Each pair is shown in both orders; a verdict that follows the order is a tie. A pair that was
    answered is not asked again, so that a judge that was stopped goes on.

    Args:
        file: pairs, as for `label`.
        judge: an address, or a YAML file with `url`, `model`, `rubric` and more.
        overlap: how many annotators answer an item, the judge among them.
        split, columns, strict: as for `label`.

    Raises:
        UserError: the endpoint does not answer, or the file cannot be read.
    """
    settings = read_settings(judge)
    rubric = RUBRIC if settings.rubric is None else read_rubric(settings.rubric, PLACES)
    session = open_session(Sources.of(file, split, columns), overlap=overlap, strict=strict)
    if settings.cache is None:
        settings = settings.model_copy(update={"cache": _cache(session.store.path)})
    endpoint = settings.endpoint()
    name = f"judge {endpoint.model}"[:MAX_NAME]
    before = session.store.num_answers(name)
    counts = {"answered": 0, "contradicted": 0, "failed": 0}
    waiting: dict[int, Verdict] = {}
    done = {one.item for one in session.store.answers() if one.annotator == name}
    left = [i for i in range(len(session.data.records)) if i not in done]
    while task := session.store.next_task(name, len(session.data.records), overlap, _kept):
        if task.item not in waiting:
            some = [i for i in left if i >= task.item][:BATCH]
            pairs = [session.data.records[i] for i in some]
            texts = [(as_text(p.prompt), as_text(p.chosen), as_text(p.rejected)) for p in pairs]
            waiting = dict(zip(some, judge_both_orders(endpoint, rubric, texts), strict=True))
        verdict = waiting[task.item]
        counts["failed" if verdict.side is None else "answered"] += 1
        counts["contradicted"] += verdict.contradicted
        session.store.answer(name, task.item, SIDES[verdict.side], reason=verdict.reason)
    endpoint.close()
    session.store.close()
    return Judged(
        name, before=before, usage=str(endpoint.usage), store=session.store.path, **counts
    )


def _kept(item: int) -> bool:
    """Completion a is on the left for every item: the judge sees both orders."""
    return False


def _cache(database: Path) -> Path:
    return database.with_suffix(".judge.sqlite")
