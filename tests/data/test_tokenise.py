"""Pairs and labels to token ids, with real tokenizers that are small enough to read."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from penchant.core.errors import ModelError
from penchant.data.batch import Group
from penchant.data.records import Label, Pair
from penchant.data.token_report import TokenReport
from penchant.data.tokenise import Tokeniser

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BOS, EOS, IM_START, IM_END = range(4)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(*, merges=(), bos=False, eos="</s>", template=CHATML, close=False):
    """A byte-level BPE; `bos` puts <s> in front of plain strings, `close` puts </s> behind."""
    vocabulary = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary += ["".join(merge) for merge in merges]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    around = f"{'<s> ' if bos else ''}$A{' </s>' if close else ''}"
    backend.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if bos else None,
        eos_token=eos,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
    )


def message(role, content):
    return {"role": role, "content": content}


def chat_pair(*prompt, chosen="good", rejected="bad"):
    answers = ((message("assistant", text),) for text in (chosen, rejected))
    return Pair(tuple(prompt), *answers, "f:1")


USER = message("user", "Hi")
CHAT = chat_pair(USER)


def tokenise(pair, tokenizer=None, *, max_length=200, max_prompt_length=150, ends=()):
    """The one example (None where it was dropped), the report, and a decoder of ids."""
    tokenizer = tokenizer or byte_level()
    tokeniser = Tokeniser(
        tokenizer, end_token_ids=ends, max_length=max_length, max_prompt_length=max_prompt_length
    )
    examples, report = tokeniser.pairs([pair])
    return (examples[0] if examples else None), report, tokenizer.decode


def test_chat_template_is_applied_once_and_the_answer_ends_as_the_template_ends_it():
    example, report, decode = tokenise(CHAT, byte_level(eos="<|im_end|>"))
    assert decode(example.prompt) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert decode(example.chosen) == "good<|im_end|>"
    assert decode(example.rejected) == "bad<|im_end|>"
    assert example.where == "f:1"
    assert (report.num_examples, report.tokenised_apart, report.prompts_cut) == (1, 0, 0)
    assert report.longest_prompt == len(example.prompt)
    assert report.longest_completion == 5


def test_system_message_and_earlier_turns_are_part_of_the_prompt():
    turns = (message("system", "Be brief."), USER, message("assistant", "Hello"), USER)
    example, _, decode = tokenise(chat_pair(*turns))
    assert decode(example.prompt) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_plain_strings_meet_no_template():
    example, _, decode = tokenise(Pair("Q: 1+1?\nA:", " 2", " 3", "f:1"))
    assert decode(example.prompt) == "Q: 1+1?\nA:"
    assert decode(example.chosen) == " 2</s>"


@pytest.mark.parametrize("pair", [CHAT, Pair("ab", "cd", "ce", "f:1")], ids=["chat", "text"])
def test_prompt_and_completion_are_the_tokens_of_the_whole_text(pair):
    tokenizer = byte_level(merges=[("a", "b"), ("c", "d"), ("o", "o")])
    example, report, decode = tokenise(pair, tokenizer, ends=[IM_END])
    whole = decode([*example.prompt, *example.chosen])
    assert tokenizer(whole)["input_ids"] == [*example.prompt, *example.chosen]
    assert report.tokenised_apart == 0


def test_a_merge_across_the_boundary_is_tokenised_apart_and_counted():
    tokenizer = byte_level(merges=[("b", "c")])
    merged = tokenizer.convert_tokens_to_ids("bc")
    example, report, decode = tokenise(Pair("ab", "cd", "xy", "f:1"), tokenizer)
    assert report.tokenised_apart == 1
    assert "tokenised apart" in report.summary()
    assert merged not in [*example.prompt, *example.chosen]
    assert decode(example.prompt) == "ab"
    assert decode(example.chosen) == "cd</s>"
    assert decode(example.rejected) == "xy</s>"


def test_a_completion_that_merges_into_the_prompt_whole_is_not_lost():
    example, report, decode = tokenise(Pair("ab", "c", "x", "f:1"), byte_level(merges=[("b", "c")]))
    assert decode(example.chosen) == "c</s>"
    assert report.tokenised_apart == 1


# Opens a thought for the answer to come, and drops it once the answer is there.
THINKING = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")


@pytest.mark.parametrize("answer", ["good", "e", "a", "<s", "im_end"])
def test_a_template_that_renders_the_answered_prompt_differently_keeps_the_answer(answer):
    pair = chat_pair(USER, chosen=answer, rejected="something else")
    example, report, decode = tokenise(pair, byte_level(template=THINKING, eos="<|im_end|>"))
    assert decode(example.prompt).endswith("<|im_start|>assistant\n<think>\n")
    assert decode(example.chosen) == f"{answer}<|im_end|>"
    assert report.tokenised_apart == 1


@pytest.mark.parametrize(
    ("completion", "eos"),
    [
        ("good", "</s>"),
        ("good</s>", "</s>"),
        ("good</s>\n", "</s>"),
        ("good</s> \n\n", "</s>"),
        ("good</s></s>", "</s>"),
        ("good</s>\n</s>\n", "</s>"),
        ("good<|im_end|>\n", "<|im_end|>"),
    ],
)
def test_a_completion_ends_on_exactly_one_end_token(completion, eos):
    tokenizer = byte_level(eos=eos)
    example, _, decode = tokenise(Pair("Hi", completion, "bad", "f:1"), tokenizer)
    assert decode(example.chosen) == f"good{eos}"
    assert example.chosen.count(tokenizer.eos_token_id) == 1
    assert example.rejected[-1] == tokenizer.eos_token_id


def test_an_end_token_of_the_generation_config_ends_a_chat_answer_too():
    example, _, decode = tokenise(CHAT, byte_level(eos="</s>"), ends=[IM_END])
    assert decode(example.chosen) == "good<|im_end|>"


def test_a_turn_end_that_generation_does_not_stop_at_is_followed_by_eos():
    example, _, decode = tokenise(CHAT, byte_level(eos="</s>"))
    assert decode(example.chosen) == "good<|im_end|>\n</s>"


def test_white_space_inside_and_before_an_added_end_token_is_kept():
    example, _, decode = tokenise(Pair("Hi", "a\n\nb \n", "bad", "f:1"))
    assert decode(example.chosen) == "a\n\nb \n</s>"


def test_there_is_one_bos_whether_the_tokenizer_or_the_text_or_the_template_writes_it():
    tokenizer = byte_level(bos=True)
    for prompt in ("Hi", "<s>Hi"):
        example, _, decode = tokenise(Pair(prompt, "good", "bad", "f:1"), tokenizer)
        assert decode(example.prompt) == "<s>Hi"
        assert BOS not in example.chosen
    example, _, decode = tokenise(CHAT, byte_level(bos=True, template="<s>" + CHATML))
    assert decode(example.prompt).startswith("<s><|im_start|>user")
    assert example.prompt.count(BOS) == 1
    assert BOS not in [*example.chosen, *example.rejected]


def test_a_tokenizer_that_closes_all_it_encodes_does_not_end_the_prompt():
    tokenizer = byte_level(bos=True, close=True)
    example, report, decode = tokenise(Pair("Hi", "good", "bad", "f:1"), tokenizer)
    assert decode(example.prompt) == "<s>Hi"
    assert decode(example.chosen) == "good</s>"
    assert report.tokenised_apart == 0


def test_prompt_longer_than_budget_is_cut_on_the_left_and_counted():
    pair = Pair("abcdefgh", "good", "bad", "f:1")
    example, report, decode = tokenise(pair, max_prompt_length=3)
    assert decode(example.prompt) == "fgh"
    assert (report.prompts_cut, report.completions_cut) == (1, 0)
    assert "1 prompts cut on the left" in report.summary()
    example, _, decode = tokenise(pair, byte_level(bos=True), max_prompt_length=3)
    assert decode(example.prompt) == "<s>gh"


def test_prompt_as_long_as_the_budget_is_left_alone():
    example, report, decode = tokenise(Pair("abc", "good", "bad", "f:1"), max_prompt_length=3)
    assert decode(example.prompt) == "abc"
    assert report.prompts_cut == 0


ONLY_WITH_USER = (
    "{% if messages | selectattr('role', 'equalto', 'user') | list | length == 0 %}"
    "{{ raise_exception('No user query found') }}{% endif %}" + CHATML
)


@pytest.mark.parametrize("template", [CHATML, "<s>" + CHATML, ONLY_WITH_USER])
def test_cutting_a_chat_prompt_keeps_its_system_message(template):
    turns = [message("system", "Be brief."), message("user", "x" * 100 + "the end")]
    tokenizer = byte_level(bos=template.startswith("<s>"), template=template)
    example, report, decode = tokenise(chat_pair(*turns), tokenizer, max_prompt_length=90)
    text = decode(example.prompt)
    assert text.removeprefix("<s>").startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert text.endswith("the end<|im_end|>\n<|im_start|>assistant\n")
    assert example.prompt.count(BOS) == template.startswith("<s>")
    assert len(example.prompt) == 90
    assert report.prompts_cut == 1


def test_cutting_a_chat_prompt_keeps_the_bos_that_its_template_writes():
    tokenizer = byte_level(bos=True, template="<s>" + CHATML)
    pair = chat_pair(message("user", "x" * 100))
    example, _, _ = tokenise(pair, tokenizer, max_prompt_length=40)
    assert example.prompt[0] == BOS
    assert len(example.prompt) == 40


def test_a_system_message_that_fills_the_budget_drops_the_pair_once():
    pair = chat_pair(message("system", "x" * 50), USER)
    example, report, _ = tokenise(pair, max_prompt_length=40)
    assert example is None
    assert report.dropped == {"system message longer than max_prompt_length": 1}
    assert report.prompts_cut == report.num_examples == 0


def test_completions_are_cut_on_the_right_to_what_the_prompt_leaves_and_counted():
    pair = Pair("abcd", "efghijkl", "xy", "f:1")
    example, report, decode = tokenise(pair, max_length=8, max_prompt_length=6)
    assert decode(example.chosen) == "efgh"
    assert decode(example.rejected) == "xy</s>"
    assert report.completions_cut == 1
    assert "1 completions cut on the right" in report.summary()


def test_a_cut_completion_does_not_claim_to_have_ended():
    pair = Pair("abcd", "efghijkl", "efghxxxx", "f:1")
    example, report, _ = tokenise(pair, max_length=9, max_prompt_length=6)
    assert EOS not in [*example.chosen, *example.rejected]
    assert report.completions_cut == 2


def test_a_pair_that_cutting_makes_equal_is_dropped_and_counted():
    pair = Pair("abcd", "efghijkl", "efghxxxx", "f:1")
    example, report, _ = tokenise(pair, max_length=8, max_prompt_length=6)
    assert example is None
    assert report.dropped == {"chosen equals rejected once cut": 1}
    assert "1 pairs dropped: chosen equals rejected once cut" in report.summary()


def test_a_prompt_without_tokens_is_dropped_and_counted_once():
    example, report, _ = tokenise(Pair("", "good", "bad", "f:1"))
    assert example is None
    assert report.dropped == {"prompt without tokens": 1}


def test_a_template_that_refuses_the_roles_drops_the_pair_and_says_why():
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    tokenizer = byte_level(template=refusing + CHATML)
    tokeniser = Tokeniser(tokenizer, end_token_ids=[], max_length=200, max_prompt_length=150)
    examples, report = tokeniser.pairs([chat_pair(message("system", "x"), USER), CHAT])
    assert len(examples) == report.num_examples == 1
    assert report.dropped == {"the chat template refused the messages (no system)": 1}


def test_chat_data_without_a_chat_template_says_what_to_set():
    with pytest.raises(ModelError, match=r"no chat template.*chat_template"):
        tokenise(CHAT, byte_level(template=None))


def test_plain_strings_need_no_chat_template():
    example, _, _ = tokenise(Pair("Hi", "good", "bad", "f:1"), byte_level(template=None))
    assert example is not None


def test_a_tokenizer_without_an_end_token_is_refused():
    with pytest.raises(ModelError, match=r"no EOS token.*set eos_token"):
        tokenise(CHAT, byte_level(eos=None))


def test_the_tokens_a_model_answers_are_those_it_was_trained_on():
    tokenizer = byte_level(bos=True, close=True)
    tokeniser = Tokeniser(tokenizer, end_token_ids=[], max_length=99, max_prompt_length=90)
    for pair in (CHAT, Pair("Hi", "good", "bad", "f:1")):
        assert tokeniser.prompt_ids(pair.prompt) == tokeniser.pairs([pair])[0][0].prompt


@pytest.mark.parametrize("pair", [CHAT, Pair("Hi", "good", "bad", "f:1")], ids=["chat", "text"])
def test_a_label_has_the_tokens_of_the_same_completion_in_a_pair(pair):
    tokeniser = Tokeniser(byte_level(), max_length=200, max_prompt_length=150)
    [[example], _] = tokeniser.pairs([pair])
    [labels, report] = tokeniser.labels(pair.labels())
    assert [label.completion for label in labels] == [example.chosen, example.rejected]
    assert [label.desirable for label in labels] == [True, False]
    assert {label.where for label in labels} == {"f:1"}
    assert labels[0].group() == Group(example.prompt, (example.chosen,))
    assert report.summary().startswith("2 examples tokenised; longest prompt")
    assert report.longest_completion == len(example.chosen)


def test_labels_are_cut_dropped_and_counted_like_pairs():
    tokeniser = Tokeniser(byte_level(merges=[("b", "c")]), max_length=8, max_prompt_length=4)
    texts = [("uvcdef", "xyzxyzxyz"), ("", "x"), ("ab", "c")]
    labels = [Label(prompt, text, True, f"f:{n}") for n, (prompt, text) in enumerate(texts)]
    examples, report = tokeniser.labels(labels)
    assert [example.where for example in examples] == ["f:0", "f:2"]
    assert tokeniser.tokenizer.decode([*examples[0].prompt, *examples[0].completion]) == "cdefxyzx"
    assert (report.prompts_cut, report.completions_cut, report.tokenised_apart) == (1, 1, 1)
    assert report.dropped == {"prompt without tokens": 1}
    assert "1 examples dropped: prompt without tokens" in report.summary()


def test_a_pair_keeps_its_margin():
    tokeniser = Tokeniser(byte_level(), max_length=20, max_prompt_length=10)
    pairs = [Pair("Hi", "good", "bad", "f:1", margin) for margin in (None, 0.0, 1.5)]
    assert [example.margin for example in tokeniser.pairs(pairs)[0]] == [None, 0.0, 1.5]


def test_no_records_give_no_examples_and_an_empty_report():
    tokeniser = Tokeniser(byte_level(), max_length=20, max_prompt_length=10)
    assert tokeniser.pairs([]) == ([], TokenReport("pairs"))
    assert tokeniser.labels([]) == ([], TokenReport("examples"))


def test_a_completion_that_fuses_with_the_prompts_last_token_is_not_lost():
    # Characters it does not know become one token, however many follow each other.
    backend = Tokenizer(models.BPE({"?": 0, "</s>": 1, "a": 2}, [], unk_token="?", fuse_unk=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="?")
    assert tokenizer("a\u2603\u2603")["input_ids"] == tokenizer("a\u2603")["input_ids"] == [2, 0]
    example, report, _ = tokenise(Pair("a\u2603", "\u2603", "a", "f:1"), tokenizer)
    assert (example.prompt, example.chosen, example.rejected) == ([2, 0], [0, 1], [2, 1])
    assert report.tokenised_apart == 1


DROPS_THOUGHT = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")


def test_reasoning_that_the_template_drops_is_counted_with_an_example():
    pair = chat_pair(USER, chosen="<think>two and two</think>4", rejected="<think>no</think>5")
    _, report, _ = tokenise(pair, byte_level(template=DROPS_THOUGHT))
    assert report.lost == {"answers": 1}
    assert report.lost_examples == {"answers": "f:1: 'no'"}
    assert "the chat template leaves out text of answers" in report.summary()


def test_pairs_that_only_the_template_makes_equal_are_not_called_cut():
    pair = chat_pair(USER, chosen="<think>two and two</think>4", rejected="<think>no</think>4")
    example, report, _ = tokenise(pair, byte_level(template=DROPS_THOUGHT))
    assert example is None
    (reason,) = report.dropped
    assert "the chat template" in reason and report.lost == {"answers": 1}


@pytest.mark.parametrize(
    ("template", "prompt", "lost"),
    [
        ("{% for m in messages if m['role'] != 'system' %}", [message("system", "Be brief.")],
         "system, user or tool messages, or tools"),
        ("{% for m in messages %}", [USER, {**message("assistant", "ho"), "reasoning": "so"}],
         "earlier answers, or names of tool messages"),
        ("{% for m in messages %}", [{**USER, "tools": [{"function": {"name": "find"}}]}],
         "system, user or tool messages, or tools"),
    ],
    ids=["system", "earlier reasoning", "tools"],
)  # fmt: skip
def test_every_part_of_a_prompt_that_the_template_drops_is_told(template, prompt, lost):
    tokenizer = byte_level(template=CHATML.replace("{% for m in messages %}", template))
    _, report, _ = tokenise(chat_pair(*prompt, USER), tokenizer)
    assert report.lost == {lost: 1}


def test_what_a_template_writes_in_its_own_way_is_not_called_lost():
    said = '  <think>\nA "quote"\n</think>\n\nand  more \n'
    trims = CHATML.replace("m['content']", "m['content'] | trim | replace('<think>', '[T]')")
    written = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | tojson }}")
    for template in (trims, written):
        _, report, _ = tokenise(chat_pair(message("user", said), chosen=said),
                                byte_level(template=template))  # fmt: skip
        assert not report.lost


def test_tools_and_reasoning_reach_the_template():
    template = "{{ tools | tojson if tools else '' }}" + CHATML.replace(
        "{{ m['content'] }}", "{{ m['reasoning_content'] or '' }}|{{ m['content'] }}"
    )
    user = {**USER, "tools": [{"type": "function", "function": {"name": "find"}}]}
    answers = [({**message("assistant", "4"), "reasoning_content": t},) for t in ("so", "as")]
    example, report, decode = tokenise(
        Pair((user,), *answers, "f:1"), byte_level(template=template)
    )
    assert '"find"' in decode(example.prompt) and "tools" not in decode(example.prompt)
    assert decode(example.chosen).startswith("so|4")
    assert not report.lost


def test_generation_prompt_that_no_answer_continues_is_counted():
    template = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    _, report, _ = tokenise(CHAT, byte_level(template=template))
    assert (report.placed_apart, report.tokenised_apart, report.lost) == (1, 1, {})


def test_reasoning_stays_in_an_answer_that_does_not_continue_the_generation_prompt():
    answer = "{{ '<think>' + m['reasoning'] + '</think>' if m['reasoning'] }}{{ m['content'] }}"
    template = CHATML.replace("{{ m['content'] }}", answer).replace("assistant\n{% e", "[A]{% e")
    answers = [({**message("assistant", "4"), "reasoning": text},) for text in ("so", "as")]
    pair = Pair((USER,), *answers, "f:1")
    example, report, decode = tokenise(pair, byte_level(template=template))
    assert report.placed_apart == 1 and not report.lost
    assert "so</think>4" in decode(example.chosen)
