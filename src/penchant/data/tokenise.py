"""Pairs to token ids: one chat template, one end token, counted cuts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from penchant.data.batch import Group
from penchant.data.records import Message, Messages, Pair, is_chat
from penchant.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for a message's text where only what a template puts around it is wanted.
PLACEHOLDER = "\x00text\x00"


@dataclass(frozen=True, slots=True)
class TokenisedPair:
    """Token ids of one pair; `where` names its row."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    where: str

    def group(self) -> Group:
        """For the batch: the chosen completion first."""
        return Group(self.prompt, (self.chosen, self.rejected))


@dataclass
class TokenReport:
    """What tokenising changed or left out, for the screen and the run directory."""

    num_pairs: int = 0
    prompts_cut: int = 0
    completions_cut: int = 0
    tokenised_apart: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    longest_prompt: int = 0
    longest_completion: int = 0

    def summary(self) -> str:
        """One line, naming only what happened."""
        parts = [
            f"{self.num_pairs} pairs tokenised; longest prompt {self.longest_prompt}, "
            f"longest completion {self.longest_completion} tokens"
        ]
        counted = {
            "prompts cut on the left (max_prompt_length)": self.prompts_cut,
            "completions cut on the right (max_length)": self.completions_cut,
            "pairs whose prompt and completion were tokenised apart": self.tokenised_apart,
            **{f"pairs dropped: {reason}": n for reason, n in self.dropped.items()},
        }
        return "; ".join(parts + [f"{n} {what}" for what, n in counted.items() if n])


class PairTokeniser:
    """Turns pairs into token ids for one model.

    Args:
        tokenizer: with an EOS token.
        end_token_ids: every token that ends an answer, as the generation config lists them;
            the tokenizer's own EOS token is one of them.
        max_length: tokens of prompt and completion together.
        max_prompt_length: tokens of the prompt.

    Raises:
        ModelError: the tokenizer has no EOS token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_token_ids: Sequence[int] = (),
        max_length: int,
        max_prompt_length: int,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no EOS token, so no completion could end; set eos_token in the "
                "model's tokenizer_config.json"
            )
        assert max_prompt_length < max_length, "the configuration refuses this"
        self.tokenizer = tokenizer
        self.end_ids = {int(tokenizer.eos_token_id), *end_token_ids}
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self._blank: dict[int, bool] = {}

    def __call__(self, pairs: Iterable[Pair]) -> tuple[list[TokenisedPair], TokenReport]:
        """Tokenise, cut and count. Pairs that cutting makes equal are dropped."""
        report = TokenReport()
        examples = []
        for pair in pairs:
            try:
                prompt, chosen, rejected = self._ids(pair, report)
            except TemplateError as error:
                # Some templates insist on alternating roles, or know no system message.
                report.dropped[f"the chat template refused the messages ({error})"] += 1
                continue
            if not prompt:
                report.dropped["prompt without tokens"] += 1
                continue
            if len(prompt) > self.max_prompt_length:
                head = self._head_length(pair.prompt, prompt)
                if head >= self.max_prompt_length:
                    report.dropped["system message longer than max_prompt_length"] += 1
                    continue
                report.prompts_cut += 1
                prompt = [*prompt[:head], *prompt[len(prompt) - (self.max_prompt_length - head) :]]
            room = self.max_length - len(prompt)
            report.completions_cut += (len(chosen) > room) + (len(rejected) > room)
            chosen, rejected = chosen[:room], rejected[:room]
            if chosen == rejected:
                report.dropped["chosen equals rejected once cut"] += 1
                continue
            report.longest_prompt = max(report.longest_prompt, len(prompt))
            longer = max(len(chosen), len(rejected))
            report.longest_completion = max(report.longest_completion, longer)
            examples.append(TokenisedPair(prompt, chosen, rejected, pair.where))
        report.num_pairs = len(examples)
        return examples, report

    def prompt_ids(self, prompt: str | Messages) -> list[int]:
        """The tokens that the model answers, as in training; not cut."""
        ids = self._encode(self._prompt_text(prompt), special=not is_chat(prompt))
        # Some tokenizers close whatever they encode; a prompt is not over.
        closed = len(ids) > 1 and not is_chat(prompt) and ids[-1] == self.tokenizer.eos_token_id
        return ids[:-1] if closed else ids

    def _ids(self, pair: Pair, report: TokenReport) -> tuple[list[int], list[int], list[int]]:
        prompt = self.prompt_ids(pair.prompt)
        before = self._prompt_text(pair.prompt)
        texts, together = zip(
            *(self._completion_text(pair.prompt, before, c) for c in (pair.chosen, pair.rejected)),
            strict=True,
        )
        completions = [self._behind(prompt, before, text, is_chat(pair.prompt)) for text in texts]
        if not all(together) or None in completions:
            report.tokenised_apart += 1
            completions = [self._encode(text, special=False) for text in texts]
        chosen, rejected = (self._finish(ids or []) for ids in completions)
        return prompt, chosen, rejected

    def _prompt_text(self, prompt: str | Messages) -> str:
        return self._render(prompt, generation_prompt=True) if is_chat(prompt) else prompt

    def _behind(
        self, prompt_ids: list[int], before: str, text: str, chat: bool
    ) -> list[int] | None:
        """The completion's tokens behind the prompt's, or None where the two merge."""
        whole = self._encode(before + text, special=not chat)
        merged = whole[: len(prompt_ids)] != prompt_ids or len(whole) == len(prompt_ids)
        return None if merged else whole[len(prompt_ids) :]

    def _completion_text(
        self, prompt: str | Messages, before: str, completion: str | Messages
    ) -> tuple[str, bool]:
        """What follows the prompt's text, and whether the template renders the two that way."""
        if not is_chat(completion):
            return completion, True
        assert is_chat(prompt)
        whole = self._render((*prompt, *completion), generation_prompt=False)
        if whole.startswith(before):
            return whole[len(before) :], True
        # The template renders earlier turns differently once there is an answer: keep the answer
        # as it renders, behind the prompt as the model meets it.
        other: Message = {**completion[0], "content": PLACEHOLDER}
        head = self._render((*prompt, other), generation_prompt=False).partition(PLACEHOLDER)[0]
        return whole[len(head) :] if whole.startswith(head) else completion[0]["content"], False

    def _finish(self, ids: list[int]) -> list[int]:
        """End on exactly one end token; template white space behind it is not trained on."""
        first_end = None
        for i in reversed(range(len(ids))):
            if ids[i] in self.end_ids:
                first_end = i
            elif not self._is_blank(ids[i]):
                break
        if first_end is None:
            return [*ids, int(self.tokenizer.eos_token_id)]
        return ids[: first_end + 1]

    def _head_length(self, prompt: str | Messages, ids: list[int]) -> int:
        """How much of a prompt stays when it is cut on the left: BOS, and a system message."""
        head = int(ids[0] == self.tokenizer.bos_token_id)
        if is_chat(prompt) and prompt[0]["role"] in ("system", "developer"):
            # Some templates refuse or drop a system message that no user message follows.
            user: Message = {"role": "user", "content": PLACEHOLDER}
            text = self._render((prompt[0], user), generation_prompt=False)
            system = self._encode(text.partition(PLACEHOLDER)[0], special=False)
            shared = (a == b for a, b in zip(ids, system, strict=False))
            head = max(head, next((i for i, s in enumerate(shared) if not s), len(system)))
        return head

    def _render(self, messages: Messages, *, generation_prompt: bool) -> str:
        if not self.tokenizer.chat_template:
            raise ModelError(
                "the data is chat messages, but the model has no chat template; give one with "
                "chat_template (a Jinja file), or use an instruction-tuned model"
            )
        rendered: Any = self.tokenizer.apply_chat_template(
            [{**message} for message in messages],  # type: ignore[arg-type]
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
        return str(rendered)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = (
                token not in self.end_ids and not str(self.tokenizer.decode([token])).strip()
            )
        return self._blank[token]
