"""Judgements of every form become pairs or labels, and what does not is counted by name."""

from __future__ import annotations

import gc
import gzip
import json
import tracemalloc

import pytest

from penchant.cli.main import main
from penchant.data import build
from penchant.data.read import read_pairs
from penchant.data.read_labels import read_labels
from penchant.data.records import DataError

SIDES = {"prompt": "q", "completion_a": "one", "completion_b": "two"}
RATED_OBJECTS = [{"text": "one", "rating": 1}, {"text": "two", "rating": 3}]
RATED = {"prompt": "q", "completions": ["one", "two", "three"], "ratings": [1, 5, 3]}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(built):
    return [(row["chosen"], row["rejected"]) for row in built.rows]


# Labels and votes


def test_label_decides_which_completion_is_chosen_and_a_tie_is_counted():
    rows = [{**SIDES, "label": label} for label in ("a", "B", "tie", "model_b")]
    built = build(rows)
    assert texts(built) == [("one", "two"), ("two", "one"), ("two", "one")]
    assert built.left_out == {"pairs left out: tie": 1}


def test_every_record_names_its_source_rows_and_rule(tmp_path):
    source = jsonl(tmp_path / "l.jsonl", [{**SIDES, "label": "tie"}, {**SIDES, "label": "a"}])
    (row,) = build(source).rows
    assert (row["source"], row["rows"], row["rule"]) == ("l.jsonl", [2], "label")
    (row,) = build([{**SIDES, "label": "a", "source": "forum"}]).rows
    assert row["source"] == "forum"


@pytest.mark.parametrize(
    ("votes", "agreement", "made"),
    [
        ("aab", "majority", [("one", "two", 2 / 3)]),
        ("aab", "unanimity", []),
        ("bbb", "unanimity", [("two", "one", 1.0)]),
        ("aab", 0.66, [("one", "two", 2 / 3)]),
        ("aab", 0.67, []),
        ("ab", "majority", []),
    ],
)
def test_votes_are_counted_by_the_rule_asked_for(votes, agreement, made):
    rows = [{**SIDES, "votes": list(votes)}, {**SIDES, "votes": ["a", "a"], "prompt": "other"}]
    found = build(rows, agreement=agreement).rows
    assert [(r["chosen"], r["rejected"], r["agreement"]) for r in found[:-1]] == made


def test_a_majority_for_tie_or_both_bad_is_no_pair():
    rows = [
        {**SIDES, "votes": ["tie", "tie", "a"]},
        {**SIDES, "votes": ["both_bad", "both bad", "b"]},
        {**SIDES, "votes": ["a"]},
    ]
    assert build(rows).left_out == {"pairs left out: tie": 1, "pairs left out: both bad": 1}


def test_agreement_of_votes_reaches_training(tmp_path):
    output = tmp_path / "p.parquet"
    build([{**SIDES, "votes": ["a", "a", "b"]}], output)
    assert read_pairs(output).records[0].agreement == pytest.approx(2 / 3)


def test_rows_of_several_annotators_are_one_pair_however_the_sides_were_shown(tmp_path):
    swapped = {"prompt": "q", "completion_a": "two", "completion_b": "one"}
    other = {**SIDES, "prompt": "p"}
    rows = [
        {**SIDES, "label": "a", "annotator": "ann", "strength": 3},
        {**other, "label": "b", "annotator": "ann", "strength": None},
        {**swapped, "label": "b", "annotator": "bob", "strength": 1},
        {**SIDES, "label": "b", "annotator": "cy", "strength": 3},
    ]
    first, second = build(jsonl(tmp_path / "v.jsonl", rows)).rows
    assert (first["chosen"], first["rejected"], first["num_votes"]) == ("one", "two", 3)
    assert first["margin"] == 2.0 and first["rows"] == [1, 3, 4]
    assert second["chosen"] == "two"


def test_an_annotator_who_answers_twice_has_one_vote_the_later(tmp_path):
    rows = [{**SIDES, "label": label, "annotator": "ann"} for label in "ab"]
    built = build(jsonl(tmp_path / "v.jsonl", rows))
    assert texts(built) == [("two", "one")] and built.rows[0]["num_votes"] == 1
    assert built.left_out == {"votes replaced by a later one of the same annotator": 1}


@pytest.mark.parametrize(("strength", "margin"), [(None, None), (1, 1.0)])
def test_a_vote_that_replaces_another_says_itself_by_how_much(tmp_path, strength, margin):
    first = {**SIDES, "label": "a", "annotator": "ann", "strength": 3}
    later = {**first, "strength": strength}
    (row,) = build(jsonl(tmp_path / "v.jsonl", [first, later])).rows
    assert (row["chosen"], row.get("margin")) == ("one", margin)


def test_votes_in_columns_with_codes_and_other_names():
    row = {"instruction": "add", "input": "1 2", "r1": "one", "r2": "two"}
    rows = [{**row, "x": 2, "y": 2, "z": 0}, {**row, "x": 1, "y": None, "z": 1.0}]
    built = build(
        rows,
        columns={"completion_a": "r1", "completion_b": "r2"},
        votes=["x", "y", "z"],
        codes={"1": "a", "2": "b", "0": "tie"},
    )
    assert texts(built) == [("two", "one"), ("one", "two")]
    assert built.rows[0]["prompt"] == "add\n\n1 2"
    assert built.left_out == {"votes missing": 1}


@pytest.mark.parametrize("vote", ["left?", 7, True, ""])
def test_unknown_vote_is_refused_by_name_with_the_way_to_say_what_it_means(vote):
    built = build([{**SIDES, "votes": ["a", vote]}, {**SIDES, "votes": ["a"]}])
    assert built.refused.counts == {"unknown vote": 1}
    assert "codes, such as 1=a" in built.summary()


# Ratings and rankings


@pytest.mark.parametrize(
    ("pairs", "min_gap", "made"),
    [
        ("best_worst", 0, {("two", "one", 4.0)}),
        ("all", 0, {("two", "one", 4.0), ("two", "three", 2.0), ("three", "one", 2.0)}),
        ("all", 3, {("two", "one", 4.0)}),
        ("best_random", 3, {("two", "one", 4.0)}),
    ],
)
def test_rated_completions_are_paired_as_asked_and_the_gap_is_the_margin(pairs, min_gap, made):
    rows = build([RATED], pairs=pairs, min_gap=min_gap).rows
    assert {(row["chosen"], row["rejected"], row["margin"]) for row in rows} == made


def test_random_other_depends_on_the_seed_and_not_on_the_rows_before():
    rows = [{**RATED, "prompt": f"q{n}"} for n in range(40)]
    first = texts(build(rows, pairs="best_random", seed=1))
    assert first[5:] == texts(build(rows[5:], pairs="best_random", seed=1))
    assert first != texts(build(rows, pairs="best_random", seed=2))
    assert {rejected for _, rejected in first} == {"one", "three"}


def test_ultrafeedback_rows_keep_their_models():
    completions = [
        {"response": "good", "overall_score": 8.5, "model": "m1", "annotations": {}},
        {"response": "bad", "overall_score": "2", "model": "m2"},
    ]
    built = build([{"instruction": "q", "completions": completions, "source": "evol"}])
    (row,) = built.rows
    assert (row["chosen"], row["margin"], row["model_rejected"]) == ("good", 6.5, "m2")
    assert built.left_out == {"ratings given as text, read as numbers": 1}


def test_one_row_a_rated_completion_is_grouped_by_prompt(tmp_path):
    rows = [
        {"prompt": p, "completion": f"{p}{r}", "rating": r}
        for p, r in [("x", 1), ("y", 4), ("x", 3), ("y", 2), ("x", 2)]
    ]
    built = build(jsonl(tmp_path / "r.jsonl", rows))
    assert texts(built) == [("x3", "x1"), ("y4", "y2")]
    assert built.rows[0]["rows"] == [1, 3, 5]


def test_unusable_ratings_are_counted_by_what_is_wrong_with_them():
    ratings = [1, "5", "N/A", None, 11, float("nan"), True]
    row = {"prompt": "q", "completions": list("abcdefg"), "ratings": ratings}
    built = build([row, RATED], rating_range=(1, 10))
    assert built.left_out == {
        "ratings given as text, read as numbers": 1,
        "completions left out: rating that is no number": 3,
        "completions left out: rating missing": 1,
        "completions left out: rating out of range": 1,
    }
    assert texts(built)[0] == ("b", "a")


def test_uneven_numbers_and_too_few_ratings_refuse_the_row():
    uneven = {**RATED, "ratings": [1, 2]}
    alone = {**RATED, "ratings": [1, None, None]}
    equal = {**RATED, "ratings": [2, 2, 2]}
    built = build([uneven, alone, equal, RATED])
    assert set(built.refused.counts) == {"uneven numbers", "fewer than two rated completions"}
    assert "3 in 'completions' and 2 in 'ratings'" in built.summary()
    assert built.left_out["pairs left out: tie"] == 1


def test_rankings_pair_the_first_with_the_last_without_a_margin():
    row = {"prompt": "q", "completions": ["x", "y", "z"], "ranks": [2, 1, 3]}
    (made,) = build([row]).rows
    assert (made["chosen"], made["rejected"], made["rank_rejected"]) == ("y", "z", 3)
    assert "margin" not in made
    assert len(build([row], pairs="all").rows) == 3
    assert build([{**row, "ranks": [0, 1, "2"]}, row]).refused.counts == {"rank out of range": 1}


def test_scores_of_several_aspects_count_by_their_mean_or_by_the_one_that_is_named():
    def rated(**aspects):
        scores = [{"text": "one", "scores": dict.fromkeys(aspects, 1)}]
        return {"prompt": "q", "completions": [*scores, {"text": "two", "scores": aspects}]}

    built = build([rated(honesty=5, helpfulness=4)])
    assert texts(built) == [("two", "one")] and built.rows[0]["margin"] == 3.5
    assert built.left_out == {"completions rated by the mean of honesty, helpfulness": 2}
    assert build([rated(helpfulness=2, verbosity=0)]).rows[0]["margin"] == 1
    with pytest.raises(DataError, match=r"--columns ratings=completions\.scores\.taste"):
        build([rated(taste=3, length=0)])
    columns = {"ratings": "completions.scores.taste"}
    assert build([rated(taste=3, length=0)], columns=columns).rows[0]["margin"] == 2


@pytest.mark.parametrize("keys", [("0", "1"), ("1", "2"), ("a", "b"), ("answer 1", "answer 2")])
def test_ratings_by_a_key_that_counts_the_completions_are_put_in_their_order(keys):
    ratings = dict(zip(reversed(keys), (5, 1), strict=True))
    assert texts(build([{"prompt": "q", "completions": ["x", "y"], "ratings": ratings}])) == [
        ("y", "x")
    ]


def test_ratings_by_keys_that_count_nothing_are_refused():
    row = {"prompt": "q", "completions": ["x", "y"], "ratings": {"m": 5, "n": 1}}
    with pytest.raises(DataError, match="'ratings' has m, n, which do not say whose they are"):
        build([row])
    assert texts(build([{**row, "models": ["n", "m"]}])) == [("y", "x")]


def test_a_verdict_by_the_name_of_a_column_means_that_column():
    row = {"prompt": "q", "response_0": "bad", "response_1": "good", "better": "response_1"}
    columns = {"completion_a": "response_0", "completion_b": "response_1", "label": "better"}
    assert texts(build([row], columns=columns)) == [("good", "bad")]


# Thumbs and chats


def test_thumbs_become_labels_that_training_reads(tmp_path):
    rows = [
        {"prompt": "q", "response": "good", "thumbs_up": True},
        {"prompt": "q", "response": "bad", "thumbs_up": "thumbs down"},
        {"prompt": "q", "response": "so", "thumbs_up": "hm"},
    ]
    built = build(rows, tmp_path / "l.jsonl")
    assert [one.desirable for one in read_labels(tmp_path / "l.jsonl").records] == [True, False]
    assert built.refused.counts == {"unknown label": 1}
    assert "made 2 labels" in built.summary()


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def test_regenerated_answers_lose_to_the_one_that_stayed():
    chat = [
        turn("user", "hi"),
        turn("assistant", "first"),
        turn("assistant", "second"),
        turn("user", "more"),
        turn("assistant", "kept", alternatives=["gone", turn("assistant", "kept")]),
    ]
    built = build([{"messages": chat}, {"messages": chat[:2]}])
    one, two = built.rows
    assert one["prompt"] == [turn("user", "hi")]
    assert one["chosen"] == [turn("assistant", "second")]
    assert one["rejected"] == [turn("assistant", "first")]
    assert [message["content"] for message in two["prompt"]] == ["hi", "second", "more"]
    assert two["rejected"] == [turn("assistant", "gone")] and two["turn"] == 4
    assert built.left_out == {
        "pairs left out: regenerated word for word": 1,
        "chats without a regenerated answer": 1,
    }


# Forms, files, bad input


def test_columns_of_two_forms_are_an_error_that_shows_both_and_how_to_say_which():
    row = {**SIDES, "label": "a", "votes": ["a"]}
    with pytest.raises(DataError, match=r"fit several forms; say which with form \(label or votes"):
        build([row])
    assert build([row], form="votes").rows[0]["num_votes"] == 1


def test_columns_of_no_form_are_an_error_that_lists_the_forms():
    with pytest.raises(DataError, match=r"fit no form of feedback \(it has: text\)(.|\n)*ranking:"):
        build([{"text": "x"}])


def test_empty_completions_and_booleans_are_refused_by_their_own_column():
    rows = [{"prompt": "q", "x": x, "completion_b": "two", "label": "a"} for x in ("", True, "y")]
    built = build(rows, columns={"completion_a": "x"})
    assert built.refused.counts == {"empty completion": 1, "boolean in place of text": 1}
    assert "'x' is the boolean true" in built.summary()


def test_truncated_gzip_and_invalid_bytes_leave_the_rows_before(tmp_path):
    lines = [json.dumps({**SIDES, "label": "a", "prompt": f"q {n}"}).encode() for n in range(2000)]
    whole = gzip.compress(b"\n".join([lines[0], b'{"prompt": "\xff"}', *lines[1:]]))
    (tmp_path / "l.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    built = build(tmp_path / "l.jsonl.gz", tmp_path / "out.jsonl")
    assert 100 < built.written < 2000
    assert built.refused.counts == {"compressed file cut off": 1, "invalid UTF-8": 1}


@pytest.mark.slow
def test_a_line_of_100_mb_is_a_row_like_any_other(tmp_path):
    rows = [{**SIDES, "label": "a"}, {**SIDES, "completion_a": "x" * 10**8, "label": "a"}]
    assert build(jsonl(tmp_path / "l.jsonl", rows), tmp_path / "o.jsonl").written == 2


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_the_same_input_gives_the_same_bytes(tmp_path, suffix):
    rows = [{**RATED, "prompt": f"q{n}"} for n in range(50)]
    outputs = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for output in outputs:
        build(rows, output, pairs="best_random")
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert len(read_pairs(outputs[0]).records) == 50


def test_parquet_takes_a_column_that_comes_late(tmp_path):
    rows = [{**SIDES, "label": "a", "annotator": "x", "prompt": f"q{n}"} for n in range(1500)]
    rows[-1]["strength"] = 2
    build(jsonl(tmp_path / "v.jsonl", rows), tmp_path / "o.parquet")
    assert len(read_pairs(tmp_path / "o.parquet").records) == 1500


def test_nothing_to_make_is_an_error_that_says_what_was_left_out(tmp_path):
    output = tmp_path / "o.jsonl"
    with pytest.raises(
        DataError, match=r"nothing can be made of the list: 1 judgement read\n  1 pa"
    ):
        build([{**SIDES, "label": "tie"}], output)
    assert not output.exists()


def test_strict_makes_a_refusal_an_error():
    with pytest.raises(DataError, match="strict allows no refusal"):
        build([{**SIDES, "label": "a"}, {**SIDES, "label": "?"}], strict=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"agreement": 1.5}, "agreement must be"),
        ({"agreement": "most"}, "agreement must be"),
        ({"pairs": "some"}, "pairs must be one of best_worst"),
        ({"min_gap": -1}, "min_gap must be"),
        ({"rating_range": (5, 1)}, "rating_range must be"),
        ({"codes": {"1": "c"}}, "codes: 1=c must mean"),
        ({"form": "stars"}, "form must be one of label, votes"),
    ],
)
def test_impossible_setting_is_named(options, told):
    with pytest.raises(DataError, match=told):
        build([RATED], **options)


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(rows):
        source = tmp_path / f"{rows}.jsonl"
        with source.open("w") as stream:
            for n in range(rows):
                row = {"prompt": f"q{n // 2}", "completion": f"{n} " * 100, "rating": n % 2}
                stream.write(json.dumps(row) + "\n")
        gc.collect()  # what the interpreter keeps free for reuse would hide what is taken
        tracemalloc.start()
        build(source, tmp_path / f"{rows}.out.jsonl")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)
    assert peak(5_000) < 350_000  # of 2.6 MB


def test_pandalm_raw_has_its_ties_booleans_and_empty_completions_named(shared):
    built = build(
        shared / "data" / "pandalm-raw.json",
        columns={"completion_a": "response1", "completion_b": "response2"},
        votes=["annotator1", "annotator2", "annotator3"],
        codes={"1": "a", "2": "b", "0": "tie"},
    )
    assert built.refused.counts == {"empty completion": 54, "boolean in place of text": 6}
    assert built.left_out == {"pairs left out: tie": 103}
    assert built.written == 836


def test_command_builds_and_says_what_it_did(tmp_path, capsys):
    source = jsonl(tmp_path / "v.jsonl", [{**SIDES, "x": 1, "y": 1}, {**SIDES, "x": 1, "y": 2}])
    output = tmp_path / "o.jsonl"
    words = ["--votes", "x,y", "--codes", "1=a,2=b", "--agreement", "0.6", "--output", str(output)]
    assert main(["data", "build", str(source), *words]) == 0
    out = capsys.readouterr().out
    assert "form: votes" in out and f"made 1 pair to {output}" in out
    assert "1 pairs left out: votes evenly divided" in out
    assert main(["data", "build", str(source), *words]) == 1
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_judgements_are_built_as_chats():
    rows = [{**SIDES, "label": "b"}]
    (pair,) = build(rows, text="chat").rows
    assert pair["prompt"] == [{"role": "user", "content": "q"}]
    assert pair["chosen"] == [{"role": "assistant", "content": "two"}]
    with pytest.raises(DataError, match="text must be chat or strings"):
        build(rows, text="prose")


def test_other_columns_stay_where_the_rows_of_a_record_agree():
    vote = {**SIDES, "topic": "law", "label": "a"}
    votes = [{**vote, "annotator": who, "at": number} for number, who in enumerate("xy")]
    (pair,) = build(votes).rows
    assert (pair["topic"], "at" in pair, "completion_a" in pair) == ("law", False, False)
    arena = {"prompt": "q", "response_a": "one", "response_b": "two", "winner": "response_b"}
    (pair,) = build([{**arena, "model_a": "m", "margin": -1}]).rows
    assert set(pair) == {"prompt", "chosen", "rejected", "rule", "source", "rows", "model_a"}


def test_what_belongs_to_the_prompt_goes_into_it():
    row = {"instruction": "q", "input": "text", "system": "s", "history": [["before", "so"]]}
    sides = {"completion_a": "one", "completion_b": "two", "label": "a", "tools": [{"name": "f"}]}
    (pair,) = build([{**row, **sides}]).rows
    said = [(one["role"], one["content"]) for one in pair["prompt"]]
    assert said == [("system", "s"), ("user", "before"), ("assistant", "so"), ("user", "q\n\ntext")]
    assert pair["prompt"][0]["tools"][0]["function"] == {"name": "f"}


def test_images_are_refused_by_name():
    row = {**SIDES, "label": "a", "images": ["a.png"]}
    with pytest.raises(DataError, match="images, sound or video"):
        build([row])


def test_strength_beside_a_label_becomes_the_margin():
    (pair,) = build([{**SIDES, "label": "b", "strength": -2}]).rows
    assert (pair["chosen"], pair["margin"]) == ("two", 2.0)


def test_a_single_score_of_0_or_1_is_a_thumb_unless_other_rows_are_rated():
    def scored(*values):
        return [
            {"input": "q", "output": f"answer {value}", "scores": [{"name": "s", "value": value}]}
            for value in values
        ]

    assert [row["label"] for row in build(scored(1, 0)).rows] == [True, False]
    with pytest.raises(DataError, match=r"rating of list:2 is .* build with form ratings"):
        build(scored(1, 5, 4))
    for values in ((1, 5, 4), (5, 1, 4)):
        assert texts(build(scored(*values), form="ratings")) == [("answer 5", "answer 1")]


def test_an_export_that_says_two_things_of_an_answer_is_refused():
    """Neither a mean of helpfulness and toxicity nor the order within two buckets ranks answers."""
    argilla = {
        "fields": {"prompt": "q", "response": "a"},
        "responses": {"helpful": [{"value": 5}], "toxic": [{"value": 1}], "why": [{"value": "x"}]},
    }
    with pytest.raises(DataError, match="'responses' answers helpful, toxic, and nothing says"):
        build([argilla])
    items = [{"id": name, "body": name} for name in ("x", "y", "z")]

    def studio(ranker):
        result = [{"value": {"ranker": ranker}}]
        return {"data": {"prompt": "q", "items": items}, "annotations": [{"result": result}]}

    with pytest.raises(DataError, match="items are sorted into good, bad, and nothing says"):
        build([studio({"good": ["x", "y"], "bad": ["z"], "_": []})])
    assert texts(build([studio({"rank": ["y", "x"], "_": ["z"]})])) == [("y", "x")]
    both = studio({"rank": ["y", "x", "z"]})
    both["annotations"] += studio({"rank": ["z"]})["annotations"]
    with pytest.raises(DataError, match="y is not in each of 2 rankings once"):
        build([both])
    comment = {"value": {"text": ["hard to say"]}}
    compared = {"data": {"prompt": "q", "answer1": "one", "answer2": "two"}}
    result = [comment, {"value": {"selected": "right"}}]
    assert texts(build([{**compared, "annotations": [{"result": result}]}])) == [("two", "one")]


def test_messages_that_follow_each_other_in_a_circle_end():
    messages = {
        "a": {"id": "a", "parentId": "b", "role": "user", "content": "q"},
        "b": {"id": "b", "parentId": "a", "role": "assistant", "content": "yes"},
    }
    snapshot = {"chat": {"history": {"messages": messages}}}
    (label,) = build([{"data": {"rating": 1}, "snapshot": snapshot}]).rows
    assert label["label"] is True


@pytest.mark.parametrize(
    ("first", "second", "by"),
    [
        ({"scores": {"helpfulness": 5, "honesty": 1}}, {"scores": {"helpfulness": 4}},
         "completions.scores, helpfulness, honesty and by completions.scores, helpfulness"),
        ({"rating": 4}, {"score": 90}, "completions.rating and by completions.score"),
        ({"score": {"overall": 2}}, {"score": 3}, "completions.score, overall and by"),
    ],
)  # fmt: skip
def test_completions_that_are_scored_by_different_things_are_not_compared(first, second, by):
    completions = [{"text": "one", **first}, {"text": "two", **second}]
    with pytest.raises(DataError, match=by):
        build([{"prompt": "q", "completions": completions}])
    unrated = {"text": "three", "rating": None}
    (pair,) = build([{"prompt": "q", "completions": [*RATED_OBJECTS, unrated]}]).rows
    assert (pair["chosen"], pair["margin"]) == ("two", 2.0)
