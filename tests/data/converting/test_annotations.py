"""Of what a tool exports, what an annotator stands by counts, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from penchant.data import build
from penchant.data.records import DataError

FIELDS = {"instruction": "q", "response1": "BAD", "response2": "GOOD"}
SUBMITTED = [("response2", "submitted")] * 2
# Counted, they would be the majority.
WITHDRAWN = [("response1", "discarded"), *[("response1", "draft")] * 2, (None, "draft")]


def by_question(given: list[tuple[Any, Any]]) -> dict[str, Any]:
    answers = [{"value": value, "status": status} for value, status in given]
    return {"fields": FIELDS, "responses": {"preference": answers}}


def by_annotator(given: list[tuple[Any, Any]]) -> dict[str, Any]:
    answers = [
        {"user_id": "u", "status": status, "values": {"preference": {"value": value}}}
        for value, status in given
    ]
    return {"fields": FIELDS, "responses": answers}


def table(given: list[tuple[Any, Any]]) -> dict[str, Any]:
    name = "preference.responses"
    values, states = ([one[column] for one in given] for column in (0, 1))
    return {**FIELDS, name: values, f"{name}.users": ["u"] * len(given), f"{name}.status": states}


EXPORTS = pytest.mark.parametrize("export", [by_question, by_annotator, table])


@EXPORTS
def test_discarded_responses_and_drafts_of_argilla_are_no_votes(export):
    (row,) = build([export([*WITHDRAWN, *SUBMITTED])]).rows
    assert (row["chosen"], row["rejected"], row["agreement"]) == ("GOOD", "BAD", 1.0)


@EXPORTS
def test_a_response_of_argilla_without_a_status_counts(export):
    (row,) = build([export([("response2", None)])]).rows
    assert row["chosen"] == "GOOD"


@EXPORTS
def test_a_record_of_argilla_that_nobody_submitted_is_refused_and_the_others_are_not(export):
    done = build([export(WITHDRAWN), export(SUBMITTED)])
    assert [row["chosen"] for row in done.rows] == ["GOOD"]
    assert "list:1: 'responses' holds nothing that was submitted" in done.refused.describe()
    with pytest.raises(DataError, match="1 refused: not answered"):
        build([export(WITHDRAWN)])


def test_rankings_and_ratings_that_were_discarded_do_not_count():
    better, worse = (
        [{"value": f"response{n}", "rank": rank} for n, rank in zip((1, 2), ranks, strict=True)]
        for ranks in ((2, 1), (1, 2))
    )
    ranked = [(better, "submitted"), (worse, "discarded"), (worse, "draft")]
    (row,) = build([table(ranked)]).rows
    assert row["chosen"] == "GOOD"
    answer = {"instruction": "q", "response": "GOOD"}
    rated = {**by_question([(5, "submitted"), (1, "draft")]), "fields": answer}
    other = {"fields": {**answer, "response": "BAD"}, "responses": {"preference": [{"value": 4}]}}
    (row,) = build([rated, other]).rows
    assert (row["chosen"], row["margin"]) == ("GOOD", 1.0)


def test_statuses_that_belong_to_no_response_are_an_error():
    row = {**table(SUBMITTED), "preference.responses.status": ["submitted"] * 3}
    with pytest.raises(DataError, match=r"must have a status for each of 'preference\.responses'"):
        build([row])
