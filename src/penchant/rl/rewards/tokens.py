"""Samples as a reward model reads them: the policy's token ids, or those of its own tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from penchant.core.errors import RewardError
from penchant.data.records import Label, Message, Text, is_chat
from penchant.data.token_report import TemplateRefusal
from penchant.data.tokenise import Tokeniser
from penchant.rl.rewards.samples import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Words, code, digits, other scripts, white space: where tokenizers differ, they differ here.
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n\treturn x ** 2  # 3.14159, 1,000\n\n",
    "Ärger — „naïve“ 東京 🙂 \\boxed{42}",
)
CHAT_PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Why?"},
)


class RewardTokens:
    """Token ids of samples for one reward model, within the length that it reads.

    Args:
        name: of the reward, for messages.
        own: the reward model's tokenizer.
        policy: the policy's; where the two encode alike, its token ids are taken as they are.
        end_token_ids: every token that ends an answer for the reward model.
        max_length: tokens that the reward model reads; what is longer loses the start of its
            prompt, and the end of its answer only where the answer alone is too long.
        reads_plain: a plain prompt that the policy was asked as a chat is read as it is written.

    Attributes:
        shared_text, shared_chat: whether the policy's token ids serve, for prompts of each kind.
        num_cut: samples cut so far.
    """

    def __init__(
        self,
        name: str,
        own: PreTrainedTokenizerBase,
        policy: PreTrainedTokenizerBase,
        *,
        end_token_ids: Sequence[int],
        max_length: int,
        reads_plain: bool = False,
    ) -> None:
        self.name, self.max_length, self.num_cut = name, max_length, 0
        self._tokeniser = _uncut(own, end_token_ids)
        self._has_template = bool(own.chat_template)
        self._wraps = self._has_template and not reads_plain
        self.shared_text = encode_alike(own, policy)
        self.shared_chat = self.shared_text and _render_alike(own, policy)

    def finding(self) -> str | None:
        """What the user should know about how samples are encoded."""
        if not self.shared_text:
            return (
                f"reward {self.name} has another tokenizer than the policy: its own encodes the "
                f"texts, cut to its {self.max_length} tokens"
            )
        if not self.shared_chat and self._has_template:
            return (
                f"reward {self.name} has another chat template than the policy: chat prompts are "
                "rendered with its own"
            )
        return None

    def __call__(self, sample: Sample) -> tuple[list[int], list[int]]:
        """Token ids of prompt and completion, at least one each.

        Raises:
            RewardError: the prompt is chat and the reward model has no chat template.
            ValueError: its template refuses the messages.
        """
        if sample.as_chat is None:
            prompt = sample.prompt
            shared = self.shared_chat if is_chat(prompt) else self.shared_text
        else:
            prompt = sample.as_chat if self._wraps else sample.prompt
            shared = self.shared_chat and self._wraps
        if shared and sample.completion_ids:
            return self._cut(sample.prompt_ids, sample.completion_ids)
        return self._cut(*self._encoded(sample, prompt))

    def _encoded(self, sample: Sample, prompt: Text) -> tuple[list[int], list[int]]:
        chat = is_chat(prompt)
        if chat and not self._has_template:
            raise RewardError(
                f"reward {self.name} has no chat template of its own, and the prompts are chat; "
                "add one to its tokenizer, or choose a reward model that was trained on chats"
            )
        answer = ({"role": "assistant", "content": sample.completion},) if chat else None
        label = Label(prompt, answer or sample.completion, True, sample.where)  # type: ignore[arg-type]
        examples, report = self._tokeniser.labels([label])
        if not examples:
            raise ValueError(f"it cannot be encoded: {', '.join(report.dropped)}")
        completion = list(examples[0].completion)
        # An answer that was cut off has no end, and neither has it for the reward model.
        open_end = not sample.ended and len(completion) > 1
        if open_end and completion[-1] in self._tokeniser.end_ids:
            completion = completion[:-1]
        return list(examples[0].prompt), completion

    def _cut(self, prompt: list[int], completion: list[int]) -> tuple[list[int], list[int]]:
        if len(prompt) + len(completion) <= self.max_length:
            return prompt, completion
        self.num_cut += 1
        completion = completion[: self.max_length - 1]
        return prompt[len(prompt) - (self.max_length - len(completion)) :], completion


def encode_alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers have one vocabulary and encode a few texts the same way."""
    if one is other:
        return True
    return one.get_vocab() == other.get_vocab() and all(
        _uncut(one).prompt_ids(text) == _uncut(other).prompt_ids(text) for text in PROBES
    )


def _render_alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    if not one.chat_template or not other.chat_template:
        return False
    try:
        return _uncut(one).prompt_ids(CHAT_PROBE) == _uncut(other).prompt_ids(CHAT_PROBE)
    except TemplateRefusal:
        return False


def _uncut(tokenizer: PreTrainedTokenizerBase, end_token_ids: Sequence[int] = ()) -> Tokeniser:
    return Tokeniser(
        tokenizer,
        end_token_ids=end_token_ids,
        max_length=sys.maxsize,
        max_prompt_length=sys.maxsize - 1,
    )
