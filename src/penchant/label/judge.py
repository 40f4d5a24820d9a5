"""A model behind an endpoint as an annotator: it compares each pair in both orders."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from penchant.core.endpoint import Endpoint
from penchant.core.errors import ConfigError
from penchant.core.judge import read_settings
from penchant.core.pairwise import judge_both_orders, rubric_of
from penchant.data.opening import Sources
from penchant.data.records import counted
from penchant.data.rows.readable import as_text
from penchant.label.session import MAX_NAME, Session, open_session

SIDES = {"a": "left", "b": "right", "tie": "tie"}
# Pairs that are claimed, judged and stored at a time, or as many as are asked about at once: so
# few that a judge that thinks is done before others are shown them too.
BATCH = 16
# Pairs in a row without a verdict that end the command: the endpoint is at fault, not the pairs.
SILENT = 64
# Hexadecimal digits that tell names apart.
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
        UserError: the endpoint does not answer, or gives no verdict on many pairs in a row (what
            was judged before is kept), another process judges the same file under this name, or
            the file cannot be read.
    """
    settings = read_settings(judge)
    rubric = rubric_of(settings)
    session = open_session(Sources.of(file, split, columns), overlap=overlap, strict=strict)
    if settings.cache is None:
        settings = settings.model_copy(update={"cache": _cache(session.store.path)})
    with closing(session.store), closing(settings.endpoint()) as endpoint:
        name = annotator_name(endpoint.model)
        with _alone(session.store.path, name):
            before = session.store.num_answers(name)
            at_once = max(BATCH, settings.concurrency)
            counts = _judge_open(session, endpoint, rubric, name, at_once)
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
    return f"{name[: MAX_NAME - DIGITS - 1]}-{_digest(model)}"


def _judge_open(
    session: Session, endpoint: Endpoint, rubric: str, name: str, at_once: int
) -> Counter[str]:
    """Have every pair judged that still lacks an answer, and count what came of it.

    Raises:
        ConfigError: no pair of many in a row, or of all, has a verdict.
    """
    store, wanted = session.store, _mixed(len(session.data.records))
    counts: Counter[str] = Counter()
    silent, reason = 0, ""
    while silent < SILENT and (items := store.claim(name, wanted, session.overlap, at_once)):
        try:
            failed = _judge_some(session, endpoint, rubric, name, items, counts)
        finally:
            store.release(name, items)
        silent = silent + len(items) if len(failed) == len(items) else 0
        if failed:
            counts["failed"] += len(failed)
            wanted = [item for item in wanted if item not in failed]
            reason = next(iter(failed.values()))
    if silent >= SILENT or (silent and not counts["answered"]):
        raise ConfigError(
            f"{name} gave no verdict on any of {counted(silent, 'pair')} ({reason}); "
            f"its {counted(store.num_answers(name), 'answer')} so far are kept in "
            f"{store.path}: see to the endpoint, then start it again"
        )
    return counts


def _judge_some(
    session: Session,
    endpoint: Endpoint,
    rubric: str,
    name: str,
    items: Sequence[int],
    counts: Counter[str],
) -> dict[int, str]:
    """Store and count the verdicts on some pairs.

    Returns:
        By item, why it has no verdict.
    """
    pairs = [session.data.records[item] for item in items]
    texts = [(as_text(p.prompt), as_text(p.chosen), as_text(p.rejected)) for p in pairs]
    failed = {}
    for item, verdict in zip(items, judge_both_orders(endpoint, rubric, texts), strict=True):
        if verdict.side is None:
            failed[item] = verdict.reason
        elif session.store.answer(name, item, SIDES[verdict.side], reason=verdict.reason):
            counts["answered"] += 1
            counts["contradicted"] += verdict.contradicted
            counts["half_preferred"] += verdict.half_preferred
    return failed


def _mixed(num_items: int) -> list[int]:
    """The items in an order that differs from call to call.

    Pairs that a judge cannot judge may lie side by side, and have no answer the next time either:
    in one order for all calls they would come first, and look like an endpoint that is gone.
    """
    return random.Random().sample(range(num_items), num_items)


@contextmanager
def _alone(database: Path, name: str) -> Iterator[None]:
    """Judge in a name in one process at a time, which no longer counts once it was killed.

    Raises:
        ConfigError: another process judges in this name.
    """
    file = database.with_suffix(f".{_digest(name)}.lock")
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise ConfigError(
                f"another process has {name} judge the pairs of {database}: wait until it ends, "
                "or end it"
            ) from None
        yield


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:DIGITS]


def _cache(database: Path) -> Path:
    return database.with_suffix(".judge.sqlite")
