"""Tools, calls and options as a chat template gets them: against transformers' own rendering."""

from __future__ import annotations

import json

import pytest

from penchant.data.chats import render
from penchant.data.converting.templates import BUILTIN
from penchant.data.rows.pairs import to_pair
from penchant.data.rows.template import with_kwargs
from penchant.data.token_report import TemplateRefusal
from penchant.data.tokenise import Tokeniser

USER = {"role": "user", "content": "Hi"}

TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}}
ARGUMENTS = {"city": 'Par"is', "days": 2}
CALL = {"id": "c1", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
# With tools, an option, and calls as Qwen 2.5 writes them; {} is how arguments are written.
TEMPLATE = (
    "{{ tools | tojson if tools }}{{ '[no thought]' if enable_thinking is false }}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}(ARGUMENTS){% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def row(**more):
    sides = {"chosen": [CALLS], "rejected": [{"role": "assistant", "content": "rain"}]}
    return {"prompt": [USER], **sides, "tools": [TOOL], **more}


@pytest.fixture
def written(byte_level_tokenizer):
    """Return a function that gives prompt and chosen answer as text, and the report."""

    def write(arguments, **more):
        tokenizer = byte_level_tokenizer(TEMPLATE.replace("ARGUMENTS", arguments))
        tokeniser = Tokeniser(tokenizer, max_length=900, max_prompt_length=800)
        [example], report = tokeniser.pairs([to_pair(row(**more), None, "f:1")])
        return tokenizer.decode(example.prompt), tokenizer.decode(example.chosen), report

    return write


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}])
def test_tools_and_options_of_a_row_are_rendered_as_transformers_renders_them(
    written, byte_level_tokenizer, kwargs
):
    tokenizer = byte_level_tokenizer(TEMPLATE)
    expected = tokenizer.apply_chat_template(
        [USER], tools=[{"type": "function", "function": TOOL}], add_generation_prompt=True,
        tokenize=False, **kwargs,
    )  # fmt: skip
    for tools in ([TOOL], json.dumps([TOOL]), [{"type": "function", "function": TOOL}]):
        prompt, _, report = written("", tools=tools, chat_template_kwargs=kwargs)
        assert prompt == expected
        assert not report.unread
    assert ("[no thought]" in expected) == bool(kwargs)


# What a template makes of arguments, by whether it wants an object or its JSON as text.
WRITTEN = {
    "{{ c.function.arguments | tojson }}": json.dumps(ARGUMENTS),
    "{% for k, v in c.function.arguments | items %}{{ k }}={{ v }};{% endfor %}": (
        'city=Par"is;days=2;'
    ),
    "{{ c.function.arguments }}": json.dumps(ARGUMENTS),
    "{{ '<' + c.function.arguments + '>' }}": f"<{json.dumps(ARGUMENTS)}>",
}  # fmt: skip
WRITTEN_AS_GIVEN = "{{ c.function.arguments }}"


@pytest.mark.parametrize("template", WRITTEN)
@pytest.mark.parametrize("as_text", [True, False])
def test_arguments_come_in_the_form_that_the_template_takes(written, template, as_text):
    arguments = json.dumps(ARGUMENTS) if as_text else ARGUMENTS
    call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    _, chosen, report = written(template, chosen=[{**CALLS, "tool_calls": [call]}])
    assert f"weather({WRITTEN[template]})<|im_end|>" in chosen
    assert not report.lost


def test_arguments_that_the_template_leaves_out_are_found(written):
    _, _, report = written("")
    assert report.lost_examples == {"answers": "f:1: 'Par\"is'"}


def test_an_option_of_a_row_goes_before_the_key_and_one_that_is_not_read_is_counted(written):
    pairs = [to_pair(row(chat_template_kwargs=own), None, "f:1") for own in ({}, {"a": 1})]
    pairs.append(to_pair({"prompt": "Hi", "chosen": "a", "rejected": "b"}, None, "f:2"))
    given = [one.prompt for one in with_kwargs(pairs, {"a": 2, "b": 3})]
    assert given[0][0]["chat_template_kwargs"] == {"a": 2, "b": 3}
    assert given[1][0]["chat_template_kwargs"] == {"a": 1, "b": 3}
    assert given[2] == "Hi"
    _, _, report = written("", chat_template_kwargs={"thinking": True, "enable_thinking": True})
    assert report.unread == {"thinking": 1}
    assert "thinking, which the chat template does not read" in report.summary()


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ("{% if tools %}{{ raise_exception('no tools here') }}{% endif %}", "no tools here"),
        ("{% if odd %}{{ raise_exception('odd is odd') }}{% endif %}", "odd is odd"),
        ("{{ 1 + messages[0].content }}", "unsupported operand"),
    ],
)
def test_what_a_template_refuses_is_said_in_its_words_with_the_row(
    byte_level_tokenizer, refusal, says
):
    pair = to_pair(row(chat_template_kwargs={"odd": True}), None, "f:7")
    tokenizer = byte_level_tokenizer(refusal + TEMPLATE)
    examples, report = Tokeniser(tokenizer, max_length=900, max_prompt_length=800).pairs([pair])
    assert not examples
    assert says in next(iter(report.dropped))
    assert "such as f:7" in report.summary()
    with pytest.raises(TemplateRefusal, match=says):
        render(tokenizer, pair.prompt, generation_prompt=True)


# A call, its result and what the assistant makes of it: the prompt of a pair.
ASKED = [
    USER,
    {**CALLS, "content": ""},
    {"role": "tool", "content": "rain"},
]
# What two templates write after an answer's end token, which TRL trains on and Penchant does not.
AFTER = {"": TEMPLATE.replace("<|im_end|>\n", "<|im_end|>"), "\n": TEMPLATE}


@pytest.mark.parametrize("after", AFTER, ids=["nothing", "line break"])
@pytest.mark.parametrize("kwargs", [None, {"enable_thinking": False}])
def test_prompts_and_answers_have_the_tokens_of_trls_trainer(
    after, kwargs, byte_level_tokenizer, make_model, tmp_path
):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    tokenizer = byte_level_tokenizer(AFTER[after].replace("ARGUMENTS", WRITTEN_AS_GIVEN))
    tools = json.dumps([{"type": "function", "function": TOOL}])
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    more = {"chat_template_kwargs": kwargs} if kwargs else {}
    rows = [
        {"prompt": ASKED, **answers, "tools": tools, **more},
        {"prompt": [{"role": "system", "content": "Be."}, USER], **answers, "tools": None, **more},
    ]
    trainer = trl.DPOTrainer(
        model=make_model("llama", vocab_size=len(tokenizer)),
        ref_model=make_model("llama", vocab_size=len(tokenizer)),
        args=trl.DPOConfig(
            output_dir=str(tmp_path), max_length=900, report_to="none", use_cpu=True, bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    batch = trainer.data_collator(list(trainer.train_dataset))
    tokeniser = Tokeniser(tokenizer, max_length=900, max_prompt_length=800)
    examples, report = tokeniser.pairs([to_pair(row, None, "f:1") for row in rows])
    assert not report.dropped and not report.lost
    end = tokenizer(after)["input_ids"]
    expected = [(one.prompt, [*one.chosen, *end]) for one in examples]
    expected += [(one.prompt, [*one.rejected, *end]) for one in examples]
    for row, (prompt, answer) in enumerate(expected):
        kept = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][kept].tolist() == [*prompt, *answer]
        trained = batch["completion_mask"][row].bool()
        assert batch["input_ids"][row][trained].tolist() == answer
    first = tokenizer.decode(examples[0].prompt)
    assert "weather" in first and ("[no thought]" in first) == bool(kwargs)


def test_a_fault_that_is_not_the_templates_is_not_called_its_refusal(
    byte_level_tokenizer, monkeypatch
):
    tokenizer = byte_level_tokenizer("{{ messages[0].content + 1 }}")
    with pytest.raises(TemplateRefusal, match="can only concatenate str"):
        render(tokenizer, (USER,), generation_prompt=False)

    def broken(*_, **__):
        raise AttributeError("'NoneType' object has no attribute 'ours'")

    monkeypatch.setattr(tokenizer, "apply_chat_template", broken)
    with pytest.raises(AttributeError, match="ours"):
        render(tokenizer, (USER,), generation_prompt=False)


def test_the_built_in_chatml_writes_tools_calls_and_reasoning(byte_level_tokenizer):
    tokenizer = byte_level_tokenizer(BUILTIN["chatml"])
    system = {"role": "system", "content": "Be brief."}
    plain = [system, USER, {"role": "assistant", "content": "Hello"}]
    assert (
        render(tokenizer, plain, generation_prompt=True)
        == "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in plain)
        + "<|im_start|>assistant\n"
    )
    answer = {"role": "assistant", "content": "Rain.", "reasoning_content": "I look."}
    for first in ([system], []):
        head, *others = [*first, USER]
        chat = [
            {**head, "tools": [{"type": "function", "function": TOOL}]}, *others,
            {**CALLS, "content": ""},
            {"role": "tool", "name": "weather", "content": "wet"}, answer,
        ]  # fmt: skip
        text = render(tokenizer, chat, generation_prompt=False)
        assert text.count("<|im_start|>system") == 1 and text.count("Be brief.") == len(first)
        call = {"name": "weather", "arguments": ARGUMENTS}
        assert json.loads(text.split("<tool_call>\n")[1].split("\n</tool_call>")[0]) == call
        for said in ('"city"', "<|im_start|>tool\nweather: wet", "<think>\nI look.\n</think>"):
            assert said in text


def test_tools_stay_where_a_prompt_is_cut_on_the_left(byte_level_tokenizer):
    tokenizer = byte_level_tokenizer(BUILTIN["chatml"])
    for first in ([{"role": "system", "content": "Be brief."}], []):
        prompt = [*first, {"role": "user", "content": "so " * 400}, CALLS,
                  {"role": "tool", "content": "wet"}]  # fmt: skip
        tokeniser = Tokeniser(tokenizer, max_length=900, max_prompt_length=600)
        [example], report = tokeniser.pairs([to_pair(row(prompt=prompt), None, "f:1")])
        text = tokenizer.decode(example.prompt)
        assert report.prompts_cut == 1 and len(example.prompt) == 600
        assert '"name": "weather", "parameters"' in text and text.endswith("assistant\n")
