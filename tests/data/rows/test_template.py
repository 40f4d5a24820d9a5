"""What stands beside a prompt for its chat template: read, or refused by name."""

from __future__ import annotations

import json

import pytest

from penchant.config.keys import load_config
from penchant.core.errors import ConfigError
from penchant.data.converting.convert import convert
from penchant.data.json_cells import unfilled
from penchant.data.opening import Sources
from penchant.data.read import read_pairs
from penchant.data.rows.pairs import to_pair
from penchant.data.rows.row import RowError
from penchant.label.reading import read_comparisons

USER = {"role": "user", "content": "Hi"}
ROW = {
    "prompt": [USER],
    "chosen": [{"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "assistant", "content": "no"}],
}
TOOL = {"name": "find", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}
WHOLE = {"type": "function", "function": TOOL}


def with_parameters(**parameters):
    return [{"name": "find", "parameters": parameters}]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("tools", "[{", "malformed JSON: 'tools' is a text, but no JSON"),
        ("tools", {"name": "find"}, "must be a list of functions"),
        ("tools", ["3"], r"tools\[0\]': it must be an object with a function"),
        ("tools", [{"type": "web_search"}], r"'tools\[0\]': its function has no name"),
        ("tools", [TOOL, {"function": {"name": ""}}], r"'tools\[1\]': its function has no name"),
        ("tools", with_parameters(type="obj"), "has the type 'obj', none of array"),
        ("tools", with_parameters(properties=["q"]), "'properties' must be an object"),
        ("tools", with_parameters(properties={"q": "string"}), "'q' in parameters of find"),
        ("tools", with_parameters(required="q"), "'required' must list names"),
        ("tools", with_parameters(anyOf={}), "'anyOf' must be a list"),
        ("chat_template_kwargs", [1], "must be an object by name"),
        ("chat_template_kwargs", {"tokenize": True}, "'tokenize' is no option of a template"),
    ],
)
def test_what_no_template_can_be_given_is_refused_by_its_field(column, value, message):
    with pytest.raises(RowError, match=message):
        to_pair({**ROW, column: value}, None, "f:1")


@pytest.mark.parametrize("column", ["tools", "chat_template_kwargs"])
def test_what_a_chat_template_reads_is_refused_where_it_would_not_be_read(column):
    value = {"tools": [TOOL], "chat_template_kwargs": {"a": 1}}[column]
    text = {"prompt": "Hi", "chosen": "yes", "rejected": "no", column: value}
    with pytest.raises(RowError, match=f"{column} beside a text prompt"):
        to_pair(text, None, "f:1")
    later = [USER, {"role": "assistant", "content": "?"}, {**USER, column: value}]
    with pytest.raises(RowError, match=rf"{column} in a later message.*prompt\[2\]"):
        to_pair({**ROW, "prompt": later}, None, "f:1")
    answer = [{**ROW["chosen"][0], column: value}]
    with pytest.raises(RowError, match=rf"{column} in a later message.*chosen\[0\]"):
        to_pair({**ROW, "chosen": answer}, None, "f:1")
    other = {"tools": [], "chat_template_kwargs": {"a": 2}}[column] or [{"name": "other"}]
    twice = {**ROW, "prompt": [{**USER, column: other}], column: value}
    with pytest.raises(RowError, match=f"{column} given twice"):
        to_pair(twice, None, "f:1")


@pytest.mark.parametrize(
    ("calls", "message"),
    [("nonsense", "no JSON"), (3, "list of calls"), ([{"id": 1}], "must name a function"),
     ([{"name": "find", "arguments": [1]}], "must have an object")],
)  # fmt: skip
def test_calls_that_are_none_are_refused(calls, message):
    answer = [{"role": "assistant", "content": "", "tool_calls": calls}]
    with pytest.raises(RowError, match=message):
        to_pair({**ROW, "chosen": answer}, None, "f:1")


def test_tools_are_the_same_in_every_form_and_in_arrow_that_fills_them_with_nulls(tmp_path):
    import pyarrow
    import pyarrow.parquet

    two = [TOOL, {"name": "stop", "parameters": {"type": "object", "required": ["now"]}}]
    call = {"function": {"name": "find", "arguments": {"q": "a"}}}
    asking = {"role": "assistant", "content": None, "tool_calls": [call]}
    rows = [{**ROW, "chosen": [asking], "tools": two, "chat_template_kwargs": {"a": 1}},
            {**ROW, "tools": None, "chat_template_kwargs": {"b": True}}]  # fmt: skip
    table = pyarrow.Table.from_pylist(rows)
    assert table.to_pylist()[0] != rows[0]
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({**row, "tools": json.dumps(row["tools"])}) + "\n" for row in rows)
    )
    read = [read_pairs(tmp_path / f"rows.{kind}").records for kind in ("parquet", "jsonl")]
    assert [one.content() for one in read[0]] == [one.content() for one in read[1]]
    first = read[0][0]
    assert first.prompt[0]["tools"][1]["function"] == two[1]
    assert first.prompt[0]["chat_template_kwargs"] == {"a": 1}
    assert first.chosen[0]["tool_calls"] == [call]
    assert unfilled({"own": {"a": None}}) == {"own": {"a": None}}


def test_tools_and_options_stay_when_rows_are_converted_and_compared(tmp_path):
    rows = [
        {**ROW, "tools": tools, "chat_template_kwargs": {"a": 1}} for tools in ([TOOL], [WHOLE])
    ]
    rows[1]["tools"] = [{**WHOLE, "function": {"name": "other"}}]
    source = tmp_path / "given.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def converted(to, start=source):
        convert(start, to, tmp_path / f"{to}.jsonl")
        return read_pairs(tmp_path / f"{to}.jsonl") if to == "pairs" else tmp_path / f"{to}.jsonl"

    own = read_pairs(source).records
    back = converted("pairs", converted("labels")).records
    assert [one.prompt for one in back] == [one.prompt for one in own]
    assert {len(one.prompt[0]["tools"]) for one in own} == {1}
    prompts = [json.loads(line) for line in converted("prompts").read_text().splitlines()]
    assert [row["tools"] for row in prompts] == [row["tools"] for row in rows]
    compared = read_comparisons(Sources.of(source)).records
    assert [one.prompt for one in compared] == [one.prompt for one in own]
    with pytest.raises(Exception, match="tools beside a text prompt"):
        convert(source, None, tmp_path / "text.jsonl", text="strings")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("enable_thinking=false", {"enable_thinking": False}),
        ("enable_thinking=False,budget=512,effort=low", {"enable_thinking": False, "budget": 512,
                                                         "effort": "low"}),
        ('{"a": [1, 2], "b": "x,y"}', {"a": [1, 2], "b": "x,y"}),
        ({"a": True}, {"a": True}),
    ],
)  # fmt: skip
def test_the_key_is_read_as_it_is_typed(given, meant):
    config = load_config("dpo", {"model": "m", "data": "d", "chat_template_kwargs": given})
    assert config.chat_template_kwargs == meant


@pytest.mark.parametrize("given", ["thinking", '{"a"', "tools=1"])
def test_a_key_that_no_template_could_take_is_refused(given):
    with pytest.raises(ConfigError, match="chat_template_kwargs"):
        load_config("dpo", {"model": "m", "data": "d", "chat_template_kwargs": given})
