"""Read questions with right and wrong answers: benchmarks of reward models and of judges, pairs.

RewardBench 2 has lists of right and wrong answers, RewardBench pairs with a subset, JudgeBench and
LLMBar two answers and a label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from penchant.core.ranking import TIES
from penchant.data.opening import Sources
from penchant.data.read import read_rows
from penchant.data.records import Data, Text, file_of
from penchant.data.rows import pairs as formats
from penchant.data.rows.messages import check_completion, check_prompt, read_text
from penchant.data.rows.row import Kind, Layout, Row, RowError, fit, is_given, kind, shown

if TYPE_CHECKING:
    from penchant.data.opening import Source

LISTS = Layout("prompt, chosen, rejected (lists of answers)", ("prompt", "chosen", "rejected"))
JUDGE_BENCH = Layout(
    "question, response_A, response_B, label (A>B or B>A)",
    ("question", "response_A", "response_B", "label"),
)
LLM_BAR = Layout(
    "input, output_1, output_2, label (1 or 2)", ("input", "output_1", "output_2", "label")
)
LAYOUTS = (LISTS, JUDGE_BENCH, LLM_BAR, *formats.LAYOUTS)
# Which answer of two is the right one, by the label.
FIRST = {"A>B": True, "B>A": False, "1": True, "2": False}
# Each subset of these counts the same in the total.
BY_SUBSET = (LISTS.name, LLM_BAR.name)
TIES_KEY = re.compile(r"(ref|tied):(\w+)")
# JudgeBench's sources by what they test; the rest of a name is the subject.
SOURCES = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with answers, of which the first ones are right.

    Args:
        prompt: what is answered.
        completions: at least one right and one wrong.
        num_correct: how many are right.
        subset: of the benchmark; empty where the row names none.
        key: the row's id; `ref:N` and `tied:N` are twins in RewardBench 2's Ties.
        where: the file and 1-based line or row.
        margin: by how much the right one of two was found better, where that is known.
    """

    noun: ClassVar[str] = "question"
    prompt: Text
    completions: tuple[Text, ...]
    num_correct: int
    subset: str
    key: str
    where: str
    margin: float | None = None

    @property
    def twin(self) -> tuple[str, str] | None:
        """Of RewardBench 2's Ties `ref` or `tied`, and the number that twins share; else None."""
        key = TIES_KEY.fullmatch(self.key)
        return None if key is None or self.subset.lower() != TIES else (key[1], key[2])

    def content(self) -> list[object]:
        """What makes the question what it is, as JSON: all but `where`."""
        return [self.prompt, list(self.completions), self.num_correct, self.subset]


def read_questions(
    source: Source,
    *,
    strict: bool = False,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> Data[Question]:
    """Read questions, in the layout of a benchmark or of pairs.

    The subset is the column `subset` (of JudgeBench, what its `source` begins with); where there is
    none and several files are read, it is the folder of the file or its name.

    Args:
        source: anything that `read_pairs` takes.
        strict, split, columns: as for `read_pairs`; `columns={"subset": "category"}` names the
            subset's column.

    Raises:
        DataError: when nothing can be read, no row is usable, or `strict` and a row is refused.
        MissingDataError: a `DataError` and a `FileNotFoundError`, when the path does not exist.
    """
    read = read_rows(Sources.of(source, split, columns), QUESTIONS, strict)
    files = {file_of(one.where) for one in read.records}
    if len(files) == 1 or any(one.subset for one in read.records):
        return read
    named = [replace(one, subset=_folder(file_of(one.where))) for one in read.records]
    return replace(read, records=named)


def recognise_question(row: object) -> Layout | None:
    """Return the layout that a row's fields and their types fit, or None."""
    if not isinstance(row, Mapping):
        return None
    if pair := formats.recognise(row):
        return pair
    if all(formats.lists_texts(row.get(name)) for name in ("chosen", "rejected")):
        return LISTS if kind(row.get("prompt")) == "text" else None
    for layout in (JUDGE_BENCH, LLM_BAR):
        if all(is_given(row, name) for name in layout.fields):
            return layout
    return None


def to_question(row: object, layout: Layout | None, where: str) -> Question | None:
    """Turn a row into a question.

    Args:
        row: the fields by name.
        layout: the layout of the rows before, or None when no row has fitted one yet.
        where: the file and line, kept in the question.

    Returns:
        The question, or None when the row is labelled a tie.

    Raises:
        RowError: when the row is in no layout, in another one than `layout`, or cannot be used.
    """
    row, layout_of_row = fit(row, layout, recognise_question, _misfit, ("input",))
    if layout_of_row in formats.LAYOUTS:
        pair = formats.to_pair(row, layout_of_row, where)
        if pair is None:
            return None
        answers = (pair.chosen, pair.rejected)
        return Question(pair.prompt, answers, 1, _subset(row), _key(row), where, pair.margin)
    read = _lists if layout_of_row is LISTS else _labelled
    prompt, right, wrong = read(row, layout_of_row)
    check_prompt(prompt)
    for field, texts in (("chosen", right), ("rejected", wrong)):
        for text in texts:
            check_completion(text, field)
    question = Question(prompt, (*right, *wrong), len(right), _subset(row), _key(row), where)
    if layout_of_row is LISTS and question.subset.lower() == TIES and question.twin is None:
        raise RowError(
            "Ties without a twin",
            f"'id' must be ref:N or tied:N, by which a question of the subset Ties is scored "
            f"beside its twin, got {shown(row.get('id'))}",
        )
    return question


def _misfit(row: Row, layout: Layout | None) -> RowError:
    wanted = layout or LISTS
    has = ", ".join(map(str, row)) or "no fields"
    return RowError("unknown layout", f"the row is no '{wanted.name}' (it has: {has})")


QUESTIONS: Kind[Question] = Kind(
    "question", LAYOUTS, recognise_question, to_question, rewritten=False
)


def _lists(row: Row, layout: Layout) -> tuple[str, list[str], list[str]]:
    right, wrong = (
        [read_text(one, name) for one in _list(row[name])] for name in ("chosen", "rejected")
    )
    return read_text(row["prompt"], "prompt"), right, wrong


def _list(value: object) -> list[Any]:
    assert isinstance(value, list | tuple), "the layout has been recognised"
    return list(value)


def _labelled(row: Row, layout: Layout) -> tuple[str, list[str], list[str]]:
    """Two answers, of which the label names the right one."""
    question, first, second, label = layout.fields
    value = row[label]
    code = "" if isinstance(value, bool) else str(value).strip().removesuffix(".0")
    if code not in FIRST or (layout is LLM_BAR) != code.isdigit():
        wanted = "1 or 2" if layout is LLM_BAR else "A>B or B>A"
        raise RowError("unknown label", f"'label' must be {wanted}, got {shown(value)}")
    texts = [read_text(row[name], name) for name in (first, second)]
    right, wrong = texts if FIRST[code] else texts[::-1]
    return read_text(row[question], question), [right], [wrong]


def _subset(row: Row) -> str:
    if is_given(row, "subset"):
        return str(row["subset"])
    source = str(row.get("source") or "")
    named = is_given(row, "response_A") and is_given(row, "source")
    return next((name for name in SOURCES if source.startswith(name)), source) if named else ""


def _key(row: Row) -> str:
    return str(row["id"]) if is_given(row, "id") else ""


def _folder(file: str) -> str:
    """The folder that a file lies in, as of `Natural/dataset.json`; else its name."""
    path = PurePosixPath(file)
    return path.parent.name or path.name.partition(".")[0]
