"""What a judge says of two answers, and what is made of its verdicts in both orders."""

from __future__ import annotations

import pytest

from penchant.core.endpoint import Endpoint, EndpointSettings
from penchant.core.errors import ConfigError
from penchant.core.pairwise import RUBRIC, Verdict, judge_both_orders, read_verdict, try_judge


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("Verdict: A", "a"), ("[[B]]", "b"), ("[[C]]", "tie"), ("**Verdict:** tie", "tie"),
     ("Verdict: A\nNo: verdict: B", "b"), ("A is better", None), ("Verdict: Although", None),
     ("Verdict: a tie", "tie"), ("verdict: a.", "a"), ("Verdict: A is better", "a"),
     ("Final verdict: a clear win for B", None), ("Verdict (A, B or tie): B", "b"),
     ("**Verdict [A/B/tie]:** tie", "tie"), ("Verdict (A or B): unclear", None),
     ("Verdict (A): the first", "a")],
)  # fmt: skip
def test_the_last_verdict_of_a_text_counts(text, verdict):
    assert read_verdict(text) == verdict


def test_what_wins_in_both_orders_is_better_and_what_wins_by_place_is_a_tie(serve_chat):
    def answer(text):
        first = text.partition("Answer A:")[2].partition("Answer B:")[0].strip()
        verdicts = {"good": "Verdict: A", "bad": "Verdict: B", "so": "[[C]]", "even": "[[C]]"}
        return verdicts.get(first, "Verdict: A")

    server = serve_chat(answer)
    endpoint = Endpoint(EndpointSettings(url=server.url, retries=0))
    answers = [("p", "good", "bad"), ("p", "bad", "good"), ("p", "so", "so"), ("p", "x", "y")]
    answers += [("p", "x", "even"), ("p", "even", "x"), ("p", "bad", "so")]
    found = judge_both_orders(endpoint, RUBRIC, answers)
    assert [one.side for one in found] == ["a", "b", *["tie"] * 5]
    assert [one.contradicted for one in found] == [i == 3 for i in range(7)]
    assert [one.half_preferred for one in found] == [i > 3 for i in range(7)]
    assert found[3].reason == "the verdict follows the order: a, then a"
    assert [one.reason for one in found[4:]] == [
        f"preferred in one order only: {said}" for said in ("a, then tie", "tie, then a",
                                                            "b, then tie")
    ]  # fmt: skip
    assert len(server.asked) == 8  # what is asked twice is asked once, and equal answers never
    assert [one.worth for one in found] == [1.0, 0.0, *[0.5] * 5]

    silent = Endpoint(EndpointSettings(url=serve_chat(lambda text: "Hm.").url, retries=0))
    assert judge_both_orders(silent, RUBRIC, answers[:1]) == [
        Verdict(None, "its answer holds no verdict: 'Hm.'")
    ]


def test_a_judge_is_tried_by_one_request_and_must_give_a_verdict(serve_chat):
    server = serve_chat(lambda text: "Verdict: A" if "Answer A:\nYes." in text else "Hm.")
    endpoint = Endpoint(EndpointSettings(url=server.url, retries=0))
    try_judge(endpoint, RUBRIC)
    assert len(server.asked) == 1
    silent = Endpoint(EndpointSettings(url=serve_chat(lambda text: "Hm.").url, retries=0))
    with pytest.raises(ConfigError, match=r"judge at http\S+ gave no usable answer to a trial"):
        try_judge(silent, RUBRIC)
