"""Ready functions give the numbers that their description promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from penchant.core.errors import ConfigError
from penchant.rl.rewards.ready import final_number, gsm8k, ready


def score(spec, *completions, **columns):
    _, function = ready(spec)
    return function(completions=list(completions), **columns)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 72.", "72"),
        ("48/2 = 24, so 48 + 24 = 72", "72"),
        ("She pays $1,234.50 in all", "1234.50"),
        ("#### 72", "72"),
        ("#### 72\nI checked 3 times", "72"),
        ("first #### 5, no: #### -6 apples 7", "-6"),
        ("it fell to -3", "-3"),
        ("it fell to −3", "-3"),
        ("that is -$5", "-5"),
        ("that is $-5", "-5"),
        ("10-4", "4"),
        ("(2)-4", "4"),
        ("- 4 apples", "4"),
        ("1, 2, 3", "3"),
        ("either 1,2", "2"),
        ("only .5", "0.5"),
        ("12,345,678", "12345678"),
        ("\\boxed{42}", "42"),
        ("20%", "20"),
    ],
)
def test_the_final_number_is_read_as_people_write_it(text, number):
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "72 #### unknown"])
def test_no_final_number_is_none(text):
    assert final_number(text) is None


def test_gsm8k_compares_with_the_number_behind_the_hashes():
    answers = ["24 clips\n#### 72", "#### 1,200", 5, "#### 7"]
    given = ["So it is 72.0", "It costs $1,200.", "4 + 1 = 5", "no idea"]
    assert gsm8k(given, answers) == [1.0, 1.0, 1.0, 0.0]
    assert gsm8k(["72 or 73"], ["#### 72"]) == [0.0]


def test_gsm8k_refuses_a_reference_without_a_number():
    with pytest.raises(ValueError, match="reference answer 'unknown' holds no number"):
        gsm8k(["5"], ["unknown"])


def test_regex_is_searched_and_format_must_fit_the_whole_answer():
    assert score("regex:a+b", "xaab", "b") == [1.0, 0.0]
    assert score("regex:(?i)a:b", "A:B") == [1.0]
    assert score("format:a.*b", "a\nb", "xab") == [1.0, 0.0]


@pytest.mark.parametrize("spec", ["format", "format:think", "format:"])
def test_the_think_format_needs_each_part_once(spec):
    right = "<think>a\nb</think>\n<answer>4</answer>\n"
    wrong = [
        "<answer>4</answer>",
        "<think>a</think>4",
        "<think>a</think><think>b</think><answer>4</answer>",
        "<think>a</think><answer>4</answer><answer>5</answer>",
        "<think>a</think><answer>4</answer> and more",
    ]
    assert score(spec, right, *wrong) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("<|assistant|>\n<think>\n", "2 and 2</think><answer>4</answer>", 1.0),
        ("<|assistant|>\n<think>\n", "<think>2 and 2</think><answer>4</answer>", 0.0),
        ("<|assistant|>\n<think>\n\n</think>\n\n", "<answer>4</answer>", 1.0),
        ("Use <think> first.\n<|assistant|>\n", "2 and 2</think><answer>4</answer>", 0.0),
    ],
)
def test_the_think_format_counts_what_the_prompt_opened(prompt, answer, expected):
    assert score("format", answer, rendered_prompts=[prompt]) == [expected]


def test_an_own_format_may_count_on_the_opened_tag_or_not():
    opened = ["<think>\n"] * 2
    answers = ("2 and 2</think>4", "no tag")
    assert score("format:[^<]*</think>4", *answers, rendered_prompts=opened) == [1.0, 0.0]
    assert score("format:<think>.*</think>4", *answers, rendered_prompts=opened) == [1.0, 0.0]


def test_length_falls_linearly_to_0_at_nothing_and_at_twice_the_target():
    """1 - |n - 4| / 4 for n = 4, 2, 8, 0, 20, 5."""
    ids = [[1] * n for n in (4, 2, 8, 0, 20, 5)]
    assert score("length:4", completion_ids=ids) == [1.0, 0.5, 0.0, 0.0, 0.0, 0.75]


def test_answers_are_compared_as_mathematics():
    reward = ready("math")[1]
    given = ["So it is $\\frac{1}{2}$.", "0.5", "\\boxed{x=3}", "about 7", "I do not know"]
    assert reward(completions=given, answer=["1/2", "$0.5$", "3", "8", "1"]) == [1, 1, 1, 0, 0]
    assert reward(completions=["It is $\\{1, 2\\}$"], solution=["$\\{2, 1\\}$"]) == [1]
    with pytest.raises(ValueError, match="no column answer or solution"):
        reward(completions=["1"])
    with pytest.raises(ValueError, match="'' cannot be read as mathematics"):
        reward(completions=["1"], answer=[""])


def test_rows_of_both_names_take_the_one_that_they_have():
    """A column that one file lacks is None in its rows, which is not the text "None"."""
    given = ["$1+1$", "$3$", "$5$"]
    assert ready("math")[1](given, answer=["2", None, "5"], solution=[None, "3", "4"]) == [1, 1, 1]
    for names in (["answer"], ["solution"], ["answer", "solution"]):
        with pytest.raises(ValueError, match="neither an answer nor a solution"):
            ready("math")[1](["$N o n e$"], **{name: [None] for name in names})
    with pytest.raises(ValueError, match="None holds no number"):
        gsm8k(["5"], [None])


def test_a_time_limit_needs_no_alarm_of_the_process():
    """Which only the main thread may set: `reward_timeout` calls a reward in another."""
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(ready("math")[1], completions=["$1+1$"], answer=[2]).result()
    assert found == [1.0]


def test_sentiment_is_vaders_compound():
    """VADER's own example: its README gives 0.8316 for "VADER is smart, handsome, and funny."."""
    assert score("sentiment", "VADER is smart, handsome, and funny.", "") == [0.8316, 0.0]


def test_sentiment_without_the_package_says_what_to_install(monkeypatch):
    from penchant.rl.rewards import ready as functions

    functions._analyser.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(ConfigError, match=r"pip install 'penchant\[sentiment\]'"):
        ready("sentiment")
    functions._analyser.cache_clear()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("regex:(", "not a regular expression"),
        ("regex:", "needs a regular expression"),
        ("format:[", "not a regular expression"),
        ("length:many", "needs a number of tokens"),
        ("length:0", "needs a number of tokens"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_run_is_set_up(spec, message):
    with pytest.raises(ConfigError, match=message):
        ready(spec)


@pytest.mark.parametrize("spec", ["regex", "length", "my.module:gsm8k", "folder", "gsm8k.py:f"])
def test_other_names_are_not_ready_functions(spec):
    assert ready(spec) is None
