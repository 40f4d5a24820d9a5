"""The text of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, ended: bool) -> str:
    """The text of an answer, without its end token and without marks of beginning and padding.

    Other special tokens stay: tags such as `<think>` are special tokens of many models, and they
    are part of what was said.

    Args:
        ids: of the answer.
        tokenizer: the policy's.
        ended: whether the last id is the token that ended the answer.
    """
    marks = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    said = [token for token in (ids[:-1] if ended else ids) if token not in marks]
    return str(tokenizer.decode(said))
