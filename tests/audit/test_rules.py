"""Each fault is found with its rows, and nothing is found where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penchant.audit import inspect
from penchant.audit.report import Report
from penchant.core.errors import ConfigError
from penchant.data.records import DataError

Row = dict[str, Any]
Make = Callable[..., list[Row]]


def rows_of(report: Report, name: str) -> list[int]:
    finding = report.finding(name)
    return [] if finding is None else finding.rows.tolist()


def test_clean_pairs_have_no_finding(make_pairs: Make) -> None:
    assert [one.id for one in inspect(make_pairs(60)).findings] == []


def test_ties_and_refused_rows_are_found_by_name_with_their_rows() -> None:
    good = {"prompt": "p", "completion_a": "x", "completion_b": "y", "label": "a"}
    rows = [
        good,
        {**good, "label": "tie"},
        {**good, "label": False},
        {**good, "completion_b": " "},
        {**good, "completion_b": "x"},
        {**good, "completion_b": "z"},
    ]
    report = inspect(rows)
    assert report.counts["rows"] == 6 and report.counts["pairs"] == 2
    assert report.counts["ties"] == 1 and report.counts["refused"] == 3
    assert rows_of(report, "ties") == [1]
    named = report.finding("refused-rows")
    assert named is not None and named.rows.tolist() == [2, 3, 4]
    assert {name: rows.tolist() for name, rows in named.parts.items()} == {
        "unknown-label": [2], "empty-completion": [3], "chosen-equals-rejected": [4],
    }  # fmt: skip
    assert named.title.startswith("3 rows (50.0%) refused while reading")
    assert "bool False" in named.evidence["examples"][0]
    assert list(report.places.at(named.rows)) == ["list:3", "list:4", "list:5"]


def test_a_repeated_row_is_a_duplicate_and_the_first_stays(make_pairs: Make) -> None:
    rows = make_pairs(20)
    report = inspect([*rows, rows[3], rows[3], rows[7]])
    assert rows_of(report, "duplicates") == [20, 21, 22]
    assert rows_of(report, "near-duplicates") == []


def test_a_row_with_few_words_changed_is_a_near_duplicate(make_pairs: Make) -> None:
    rows = make_pairs(40)
    near = {name: " ".join(["other", *text.split()[1:]]) for name, text in rows[5].items()}
    assert rows_of(inspect([*rows, near]), "near-duplicates") == [40]


def test_labels_of_two_verdicts_are_no_near_duplicates_of_each_other(make_pairs: Make) -> None:
    rows = [
        {"prompt": one["prompt"], "completion": one["chosen"], "label": True}
        for one in make_pairs(40)
    ]

    def edited(first: str, label: bool) -> Row:
        words = rows[5]["completion"].split()[1:]
        return {**rows[5], "completion": " ".join([first, *words]), "label": label}

    both_ways = {**rows[6], "label": False}
    more = [edited("other", False), both_ways, edited("else", True), edited("again", False)]
    report = inspect([*rows, *more])
    assert rows_of(report, "near-duplicates") == [42, 43]
    assert rows_of(report, "contradictions") == [6, 41]


def test_a_shared_prompt_or_a_shared_completion_is_no_near_duplicate(make_pairs: Make) -> None:
    first, second, third = make_pairs(3)
    rows = [
        first,
        {**second, "prompt": first["prompt"]},
        {**third, "prompt": first["prompt"], "chosen": first["chosen"]},
        {**first, "prompt": third["prompt"]},
    ]
    assert rows_of(inspect(rows), "near-duplicates") == []


def test_contradictions_are_both_rows_and_only_within_a_prompt(make_pairs: Make) -> None:
    rows = make_pairs(10)
    swapped = {**rows[2], "chosen": rows[2]["rejected"], "rejected": rows[2]["chosen"]}
    elsewhere = {**swapped, "prompt": "another prompt"}
    assert rows_of(inspect([*rows, swapped]), "contradictions") == [2, 10]
    assert rows_of(inspect([*rows, elsewhere]), "contradictions") == []


def test_a_cycle_is_found_and_a_chain_is_not() -> None:
    def over(better: str, worse: str, prompt: str = "p") -> Row:
        return {"prompt": prompt, "chosen": better, "rejected": worse}

    chain = [over("a", "b"), over("b", "c"), over("a", "c")]
    assert rows_of(inspect(chain), "cycles") == []
    cycle = [*chain[:2], over("c", "a"), over("a", "d"), over("c", "a", "q"), over("x", "b", "q")]
    assert rows_of(inspect(cycle), "cycles") == [0, 1, 2]


def test_a_label_given_both_ways_is_a_contradiction() -> None:
    rows = [
        {"prompt": "p", "completion": "x", "label": True},
        {"prompt": "p", "completion": "y", "label": False},
        {"prompt": "p", "completion": "x", "label": False},
    ]
    report = inspect(rows)
    assert report.kind == "labels" and report.counts["desirable"] == 1
    assert rows_of(report, "contradictions") == [0, 2]


def test_completions_that_differ_in_white_space_or_case_only_are_found() -> None:
    rows = [
        {"prompt": "p", "chosen": "so it is", "rejected": "So  it is\n"},
        {"prompt": "q", "chosen": "so it is", "rejected": "so it was"},
    ]
    assert rows_of(inspect(rows), "white-space") == [0]


def test_low_agreement_and_split_votes_and_zero_margins_are_found() -> None:
    def row(number: int, votes: list[str], margin: float = 1.0) -> Row:
        return {"prompt": f"p{number}", "completion_a": f"x{number}", "completion_b": "y",
                "label": "a", "votes": votes, "margin": margin}  # fmt: skip

    rows = [row(0, ["a", "a", "a"]), row(1, ["a", "a", "b"]), row(2, ["a", "b", "tie"]),
            row(3, ["a", "a", "a"], margin=0.0)]  # fmt: skip
    report = inspect(rows)
    assert rows_of(report, "low-agreement") == [2]
    assert rows_of(report, "split-votes") == [1, 2]
    assert rows_of(report, "zero-margin") == [3]
    assert rows_of(inspect(rows, min_agreement=0.7), "low-agreement") == [1, 2]


def test_prompts_of_the_evaluation_are_leaks_exact_and_near(
    make_pairs: Make, tmp_path: Path
) -> None:
    rows, held_out = make_pairs(10), make_pairs(5, seed=1)
    rows[4] = {**rows[4], "prompt": held_out[0]["prompt"]}
    near = held_out[1]["prompt"].split()
    rows[6] = {**rows[6], "prompt": " ".join([*near, "too"])}
    report = inspect(rows, eval_data=held_out)
    assert rows_of(report, "leaks") == [4]
    assert rows_of(report, "near-leaks") == [6]
    assert inspect(rows).finding("leaks") is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to ann.lee@mail.example.org today", "e-mail address"),
        ("call 650-636-4884 now", "phone number"),
        ("call +44 20 7946 0958 now", "phone number"),
        ("key sk-abcdefghijklmnopqrstuvwx", "key or token"),
        ("AKIAABCDEFGHIJKLMNOP", "key or token"),
    ],
)
def test_personal_data_is_counted_by_kind(text: str, kind: str) -> None:
    harmless = {"prompt": "q", "chosen": "in 1984, 2.5 of 10-12", "rejected": "v1.2.3"}
    report = inspect([{"prompt": "p", "chosen": text, "rejected": "no"}, harmless])
    finding = report.finding("personal-data")
    assert finding is not None and finding.rows.tolist() == [0] and finding.evidence[kind] == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ok<|im_end|>", "<|...|>"),
        ("[INST] do it [/INST]", "[INST]"),
        ("done</s>", "<s>"),
        ("yes\n\nHuman: and then?", "Human:"),
        ("### Response:\nyes", "### Instruction:"),
        ("yes<end_of_turn>", "<start_of_turn>"),
    ],
)
def test_leftovers_of_templates_are_counted_by_kind(text: str, kind: str) -> None:
    harmless = {"prompt": "q", "chosen": "a Human: being <s", "rejected": "x | y"}
    report = inspect([{"prompt": "p", "chosen": text, "rejected": "no"}, harmless])
    finding = report.finding("template-leftovers")
    assert finding is not None and finding.rows.tolist() == [0] and finding.evidence[kind] == 1


def test_pandalm_has_its_ties_votes_and_length_bias(shared: Path) -> None:
    report = inspect(shared / "data" / "pandalm.jsonl")
    assert len(rows_of(report, "ties")) == 103
    bias = report.finding("length-bias")
    assert bias is not None and bias.severity == "warning"
    longer, shorter = bias.evidence["longer chosen"], bias.evidence["shorter chosen"]
    assert 0.64 < longer / (longer + shorter) < 0.68
    assert report.noise is not None and report.noise.votes == 3
    assert 0.95 < report.noise.mean_agreement < 0.97
    assert len(rows_of(report, "split-votes")) == 98


def test_sources_of_pairs_and_of_labels_are_not_mixed(tmp_path: Path) -> None:
    pairs, labels = tmp_path / "pairs.jsonl", tmp_path / "labels.jsonl"
    pairs.write_text('{"prompt": "p", "chosen": "x", "rejected": "y"}\n')
    labels.write_text('{"prompt": "p", "completion": "x", "label": true}\n')
    with pytest.raises(DataError, match="hold pairs and labels"):
        inspect([pairs, labels])
    assert inspect([pairs, pairs]).counts["rows"] == 2


def test_a_source_without_a_record_is_refused_with_the_reason() -> None:
    with pytest.raises(DataError, match="1 refused, 0 ties"):
        inspect([{"remark": "p"}])


@pytest.mark.parametrize("setting", [{"sample": 0}, {"min_agreement": 0.0}, {"max_length": 0}])
def test_impossible_settings_are_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        inspect([{"prompt": "p", "chosen": "x", "rejected": "y"}], **setting)
