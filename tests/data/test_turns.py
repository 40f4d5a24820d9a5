"""Completions of several turns: which tokens are trained on, in templates of four kinds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.config.keys import load_config
from penchant.core.errors import ConfigError
from penchant.data.batch import Turns, num_trained, pack, pad, trained_spans
from penchant.data.records import Label, Pair
from penchant.data.tokenise import Tokeniser

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}<|im_start|>[{{ m.role }}]\n\n{{ m.content | trim }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>[assistant]\n\n{% endif %}"
)
# The text of an answer is marked, its end is not, nor the thought that opens it.
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}ok: "
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen 3: only the last answer keeps its thought.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and "
    "(loop.last or keep) %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSES = {
    "a role": "{% if messages[-1].role == 'tool' %}{{ raise_exception('no') }}{% endif %}",
    "an order": "{% for m in messages %}{% if loop.index0 % 2 == 0 and m.role != 'user' %}"
    "{{ raise_exception('no') }}{% endif %}{% endfor %}",
}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


USER = turn("user", "U1")
TALK = (turn("assistant", "A1"), turn("user", "U2"), turn("tool", "T"), turn("assistant", "A2"))
OTHER = (turn("assistant", "B1"), turn("user", "V"), turn("assistant", "B2"))


@pytest.fixture
def encode(byte_level_tokenizer):
    """Return a function that tokenises a pair of chats."""

    def run(template, chosen=TALK, rejected=OTHER, prompt=(USER,), *, max_length=300, **how):
        tokenizer = byte_level_tokenizer(template)
        tokeniser = Tokeniser(tokenizer, max_length=max_length, max_prompt_length=150, **how)
        examples, report = tokeniser.pairs([Pair(prompt, chosen, rejected, "f:1")])
        return (examples or [None])[0], report, tokenizer

    return run


def shown(completion, tokenizer):
    """The completion as text, with [] around what is trained on."""
    text, at = "", 0
    for start, end in trained_spans(completion):
        inside = tokenizer.decode(completion[:][start:end].ids)
        text += f"{tokenizer.decode(list(completion)[at:start])}[{inside}]"
        at = end
    return text + tokenizer.decode(list(completion)[at:])


IM = "<|im_start|>"
END = "<|im_end|>"
BY_HAND = {
    CHATML: f"[A1{END}]\n{IM}user\nU2{END}\n{IM}tool\nT{END}\n{IM}assistant\n[A2{END}]",
    LLAMA: f"[A1{END}]{IM}[user]\n\nU2{END}{IM}[tool]\n\nT{END}{IM}[assistant]\n\n[A2{END}]",
    MARKED: f"ok: [A1{END}]\n{IM}user\nU2{END}\n{IM}tool\nT{END}\n{IM}assistant\nok: [A2{END}]",
}


@pytest.mark.parametrize("template", BY_HAND, ids=["chatml", "llama", "marked"])
def test_what_the_assistant_says_is_trained_on_with_its_ends_and_nothing_else(encode, template):
    example, report, tokenizer = encode(template)
    assert shown(example.chosen, tokenizer) == BY_HAND[template]
    whole = tokenizer.apply_chat_template([USER, *TALK], tokenize=False)
    ids = [*example.prompt, *example.chosen]
    assert tokenizer.decode(ids) == whole.removesuffix("\n")
    assert ids == tokenizer(whole)["input_ids"][: len(ids)]
    assert not report.tokenised_apart and not report.lost and not report.dropped


@pytest.mark.parametrize("template", [CHATML, LLAMA, MARKED])
def test_an_answer_of_one_turn_has_the_tokens_that_it_has_beside_one(encode, template):
    mixed, _, _ = encode(template, TALK, OTHER[:1])
    alone, _, _ = encode(template, (turn("assistant", "C"),), OTHER[:1])
    assert not isinstance(alone.rejected, Turns)
    assert mixed.rejected == alone.rejected
    assert mixed.prompt == alone.prompt


@pytest.mark.parametrize("template", [CHATML, LLAMA, MARKED, THINKING])
def test_the_last_turn_alone_is_what_a_row_gives_whose_prompt_holds_all_before_it(encode, template):
    said = {"reasoning_content": "why"} if template == THINKING else {}
    talk = (*TALK[:-1], {**TALK[-1], **said})
    other = (*OTHER[:-1], {**OTHER[-1], **said})
    example, report, tokenizer = encode(template, talk, other, loss_on_turns="last")
    tokeniser = Tokeniser(tokenizer, max_length=300, max_prompt_length=250)
    for chat, completion in ((talk, example.chosen), (other, example.rejected)):
        single = Label((USER, *chat[:-1]), chat[-1:], True, "f:1")
        [[row], _] = tokeniser.labels([single])
        assert [*example.prompt, *completion] == [*row.prompt, *row.completion]
        [(start, end)] = completion.trained
        assert list(completion)[start:end] == row.completion
    assert example.asked == tokeniser.prompt_ids((USER,))
    assert not report.lost
    # A label's turns before the last go into its prompt: it is that row.
    by_turn = Tokeniser(tokenizer, max_length=300, max_prompt_length=250, loss_on_turns="last")
    [[label], _] = by_turn.labels([Label((USER,), talk, True, "f:1")])
    [[row], _] = tokeniser.labels([Label((USER, *talk[:-1]), talk[-1:], True, "f:1")])
    assert (label.prompt, label.completion) == (row.prompt, row.completion)


def test_a_template_that_rewrites_earlier_turns_is_found_and_its_rows_are_left_out(encode):
    example, report, _ = encode(THINKING)
    assert example is None
    assert (report.rewritten, report.rewritten_example) == (1, "f:1: 'A1'")
    assert "rewrites earlier turns" in next(iter(report.dropped))
    kept = ({**USER, "chat_template_kwargs": {"keep": True}},)
    example, report, tokenizer = encode(THINKING, prompt=kept)
    assert example and not report.rewritten
    assert shown(example.chosen, tokenizer).startswith("[<think></think>A1<|im_end|>]\n")


@pytest.mark.parametrize("refusal", REFUSES)
def test_a_template_that_refuses_a_turn_says_so_with_the_row(encode, refusal):
    example, report, _ = encode(REFUSES[refusal] + CHATML)
    assert example is None
    assert report.dropped == {"the chat template refused the messages (no)": 1}
    assert list(report.dropped_examples.values()) == ["f:1"]


def test_marks_that_name_nothing_leave_the_row_out(encode):
    never = CHATML.replace("{{ m.content }}", "{% if false %}{% generation %}{% endgeneration %}"
                           "{% endif %}{{ m.content }}")  # fmt: skip
    example, report, _ = encode(never)
    assert example is None
    assert "name no token" in next(iter(report.dropped))


@settings(max_examples=25, deadline=None)
@given(words=st.lists(st.text("ab \n<é", min_size=1, max_size=6), min_size=3, max_size=3))
def test_what_others_say_does_not_change_what_counts(byte_level_tokenizer, words):
    tokeniser = Tokeniser(byte_level_tokenizer(CHATML), max_length=300, max_prompt_length=150)

    def counted(*texts):
        chat = (TALK[0], turn("user", texts[0]), turn("tool", texts[1]), TALK[3])
        [[one], _] = tokeniser.labels([Label((turn("user", texts[2]),), chat, True, "f:1")])
        return [one.completion.ids[a:b] for a, b in one.completion.trained]

    assert counted(*words) == counted("x", "y", "z")


def test_a_cut_keeps_what_counts_of_it_and_drops_a_row_of_which_nothing_is_left(encode):
    whole, _, tokenizer = encode(CHATML)
    length = len(whole.prompt) + 5
    cut, report, _ = encode(CHATML, max_length=151 + 5, rejected=OTHER)
    assert report.completions_cut == 0
    tokeniser = Tokeniser(tokenizer, max_length=length, max_prompt_length=length - 1)
    [[cut], report] = tokeniser.pairs([Pair((USER,), TALK, OTHER, "f:1")])
    assert cut.chosen == Turns(list(whole.chosen)[:5], ((0, 3),))
    assert report.completions_cut == 2
    last = Tokeniser(tokenizer, max_length=length, max_prompt_length=length - 1,
                     loss_on_turns="last")  # fmt: skip
    examples, report = last.pairs([Pair((USER,), TALK, OTHER, "f:1")])
    assert not examples
    assert report.dropped == {"no token that is trained on is left in max_length": 1}


def test_a_reward_model_reads_whole_chats_as_the_template_writes_them(encode):
    for template in (CHATML, THINKING):
        example, report, tokenizer = encode(template, loss_on_turns="all")
        for chat, completion in ((TALK, example.chosen), (OTHER, example.rejected)):
            text = tokenizer.apply_chat_template([USER, *chat], tokenize=False)
            assert tokenizer.decode([*example.prompt, *completion]) == text.removesuffix("\n")
        assert not report.dropped


def test_only_tokens_that_count_are_predicted_in_either_layout(encode):
    example, _, _ = encode(CHATML)
    group = example.group()
    counted = [t for c in group.completions for a, b in c.trained for t in list(c)[a:b]]
    packed, padded = pack([group]), pad([group], 0)
    for batch in (packed, padded):
        assert batch.targets.tolist() == counted
        assert batch.completion_lengths.tolist() == list(map(num_trained, group.completions))
    assert padded.input_ids.flatten()[padded.predictors + 1].tolist() == counted
    [segments] = packed.segments
    expected = []
    for (begin, _), completion in zip(segments.completions, group.completions, strict=True):
        places = (begin + at for a, b in completion.trained for at in range(a, b))
        expected += [segments.prompt_end - 1 if at == begin else at - 1 for at in places]
    assert packed.predictors.tolist() == expected
    assert packed.ends.tolist() == [end - 1 for _, end in segments.completions]


@pytest.mark.parametrize(("method", "more"), [("reward", {}), ("ppo", {"reward": "r"})])
def test_a_choice_of_turns_that_changes_nothing_is_refused(method, more):
    with pytest.raises(ConfigError, match="loss_on_turns changes nothing; drop it"):
        load_config(method, {"model": "m", "data": "d", "loss_on_turns": "last", **more})


def test_hand_worked_slices_of_turns():
    turns = Turns([1, 2, 3, 4, 5, 6], ((0, 2), (4, 6)))
    assert turns[1:5] == Turns([2, 3, 4, 5], ((0, 1), (3, 4)))
    assert turns[:3].trained == ((0, 2),)
    assert (num_trained(turns), turns[-1], len(turns), num_trained([1, 2])) == (4, 6, 6, 2)
