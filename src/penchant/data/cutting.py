"""Prompts that are longer than a run allows, cut on the left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from penchant.data.encoding import PLACEHOLDER
from penchant.data.records import Message, Messages, Text, is_chat
from penchant.data.token_report import Dropped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoder(Protocol):
    """What is asked of a `Tokeniser`."""

    tokenizer: PreTrainedTokenizerBase
    max_prompt_length: int

    def render(self, messages: Messages, *, generation_prompt: bool) -> str: ...
    def encode(self, text: str, *, special: bool) -> list[int]: ...


def cut_prompt(tokeniser: Encoder, prompt: Text, ids: list[int]) -> list[int]:
    """The head of a prompt, and as much of its end as there is room for; all of a short one.

    Raises:
        Dropped: there is room for no more than its head.
    """
    longest = tokeniser.max_prompt_length
    if len(ids) <= longest:
        return ids
    head = _head_length(tokeniser, prompt, ids)
    if head >= longest:
        raise Dropped("system message longer than max_prompt_length")
    return [*ids[:head], *ids[len(ids) - (longest - head) :]]


def _head_length(tokeniser: Encoder, prompt: Text, ids: list[int]) -> int:
    """How much of a prompt stays when it is cut on the left: BOS, tools, a system message."""
    head = int(ids[0] == tokeniser.tokenizer.bos_token_id)
    system_first = is_chat(prompt) and prompt[0]["role"] in ("system", "developer")
    if is_chat(prompt) and (system_first or prompt[0].get("tools")):
        # Some templates refuse or drop a system message that no user message follows.
        user: Message = {"role": "user", "content": PLACEHOLDER}
        tooled: Message = {**prompt[0], **user}
        chat = (prompt[0], user) if system_first else (tooled,)
        text = tokeniser.render(chat, generation_prompt=False)
        system = tokeniser.encode(text.partition(PLACEHOLDER)[0], special=False)
        shared = (a == b for a, b in zip(ids, system, strict=False))
        head = max(head, next((i for i, s in enumerate(shared) if not s), len(system)))
    return head
