"""Pairs from trees of messages in which the answers to a message are ranked: OpenAssistant's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from penchant.data.building.rated import Scored, choose
from penchant.data.building.rules import Counts, Form, Placed, Rows, Rules, pair
from penchant.data.rows.messages import ROLE_NAMES
from penchant.data.rows.row import Row, RowError, is_given, shown

Node = Mapping[str, Any]
Chat = list[dict[str, object]]


def _is_tree(row: Row, rules: Rules) -> bool:
    root = row["prompt"] if isinstance(row.get("prompt"), Mapping) else row
    assert isinstance(root, Mapping)
    return _is_message(root) and ("replies" in root or "message_id" in root)


def _is_message(node: Row) -> bool:
    return is_given(node, "text") and node.get("role") in ("prompter", "assistant")


def _key(row: Row, rules: Rules) -> object:
    """The tree that a flat message belongs to; a row with replies is a tree of its own."""
    return None if isinstance(row.get("prompt"), Mapping) or "replies" in row else _tree_id(row)


def _tree_id(row: Row) -> object:
    if not is_given(row, "message_tree_id"):
        raise RowError("missing field", "'message_tree_id' must say which tree a message is of")
    return row["message_tree_id"]


def _from_tree(unit: Sequence[Placed], rules: Rules, counts: Counts) -> Rows:
    where, first = unit[0]
    root: Any = first.get("prompt", first)
    replies: dict[object, list[Node]] = defaultdict(list)
    if "replies" not in root:
        for _, row in unit:
            replies[row.get("parent_id")].append(row)
        root = next(iter(replies[None]), None)
        if root is None:
            raise RowError("tree without a root", f"no message of {shown(first)} has no parent")
    made = 0
    for before, answers in _answered(root, [], replies):
        ranked = [one for one in answers if one.get("rank") is not None and not one.get("deleted")]
        counts["answers left out: without a rank"] += len(answers) - len(ranked)
        scored = [Scored(str(one["text"]), -float(one["rank"])) for one in ranked]
        for better, worse in choose(scored, rules, counts, before) if len(scored) > 1 else ():
            made += 1
            yield {
                **pair(before, better.text, worse.text, where),
                "turn": len(before) + 1,
                "rule": f"tree, {rules.choice}",
            }
    counts["trees without two ranked answers"] += not made


def _answered(
    node: Node, before: Chat, replies: Mapping[object, list[Node]]
) -> Iterator[tuple[Chat, list[Node]]]:
    """Each message of a user's in a tree, after what was said before it, with its answers."""
    role = ROLE_NAMES.get(str(node.get("role")), str(node.get("role")))
    chat = [*before, {"role": role, "content": node["text"]}]
    children = node["replies"] if "replies" in node else replies.get(node.get("message_id"), [])
    if role == "user" and children:
        yield chat, list(children)
    for child in children:
        yield from _answered(child, chat, replies)


TREES = Form(
    "trees",
    "messages with text, role, rank and replies, or with parent_id and message_tree_id",
    _is_tree,
    _from_tree,
    ("text", "role", "rank", "replies", "message_id", "parent_id", "deleted"),
    _key,
)
