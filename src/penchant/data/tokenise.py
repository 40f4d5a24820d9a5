"""Pairs, labels and prompts to token ids: one chat template, one end token, counted cuts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penchant.core.errors import ModelError
from penchant.data.batch import Group, num_trained
from penchant.data.encoding import PLACEHOLDER, Ahead, Encoder, Written, completions_of, in_chunks
from penchant.data.records import REASONING, Label, Message, Messages, Pair, Record, Text, is_chat
from penchant.data.token_ids import TokenStore
from penchant.data.token_report import Dropped, Encoded, LossOnTurns, TemplateRefusal, TokenReport

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from penchant.data.prompts import Prompt
    from penchant.data.tokenised import TokenisedLabel, TokenisedPrompt


@dataclass(frozen=True, slots=True)
class TokenisedPair:
    """Token ids of one pair; `where` names its row, and `margin` is the pair's.

    Where the layout shares another beginning than the prompt, `asked` is what a model is asked.
    """

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    where: str
    margin: float | None = None
    asked: Sequence[int] | None = None

    def group(self) -> Group:
        """For the batch: the chosen completion first."""
        return Group(self.prompt, (self.chosen, self.rejected))


class Tokeniser:
    """Turns pairs, labels and prompts into token ids for one model.

    Args:
        tokenizer: with an EOS token.
        end_token_ids: every token that ends an answer, as the generation config lists them;
            the tokenizer's own EOS token is one of them.
        max_length: tokens of prompt and completion together.
        max_prompt_length: tokens of the prompt.
        loss_on_turns: which turns of a completion are trained on: those of the assistant, its last
            one, or (for reward models, which read the whole chat) all.

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
        loss_on_turns: LossOnTurns = "assistant",
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
        self.loss_on_turns = loss_on_turns
        self._blank: dict[int, bool] = {}
        self._encoder, self._written = Encoder(tokenizer), Ahead()
        self._store = TokenStore()

    def pairs(self, pairs: Iterable[Pair]) -> tuple[list[TokenisedPair], TokenReport]:
        """Tokenise, cut and count. Pairs that cutting makes equal are dropped."""
        self._store = TokenStore()
        return in_chunks(pairs, self._write_ahead, self._pair, TokenReport("pairs"))

    def labels(self, labels: Iterable[Label]) -> tuple[list[TokenisedLabel], TokenReport]:
        """Tokenise, cut and count."""
        self._store = TokenStore()
        return in_chunks(labels, self._write_ahead, self._label, TokenReport("examples"))

    def prompts(self, prompts: Iterable[Prompt]) -> tuple[list[TokenisedPrompt], TokenReport]:
        """Tokenise, cut on the left to max_prompt_length, and count."""
        return in_chunks(prompts, self._write_ahead, self._prompt, TokenReport("prompts"))

    def prompt_ids(self, prompt: Text) -> list[int]:
        """The tokens that the model answers, as in training; not cut.

        Raises:
            TemplateRefusal: the chat template does not write the messages.
        """
        return self._prompt_ids(prompt, self._prompt_text(prompt))

    def _prompt_ids(self, prompt: Text, text: str) -> list[int]:
        ids = self.encode(text, special=not is_chat(prompt))
        # Some tokenizers close whatever they encode; a prompt is not over.
        closed = len(ids) > 1 and not is_chat(prompt) and ids[-1] == self.tokenizer.eos_token_id
        return ids[:-1] if closed else ids

    def _pair(self, pair: Pair, report: TokenReport) -> TokenisedPair:
        completions = (pair.chosen, pair.rejected)
        num_cut = report.completions_cut
        encoded = self._fitted(pair, completions, report)
        chosen, rejected = encoded.completions
        if list(chosen) == list(rejected):
            cut = report.completions_cut > num_cut
            why = "once cut" if cut else "as the chat template and the tokenizer write them"
            raise Dropped(f"chosen equals rejected {why}")
        prompt, chosen, rejected = map(self._store.keep, (encoded.prompt, chosen, rejected))
        return TokenisedPair(
            prompt, chosen, rejected, pair.where, pair.margin, self._kept(encoded.asked)
        )

    def _label(self, label: Label, report: TokenReport) -> TokenisedLabel:
        encoded = self._fitted(label, (label.completion,), report)
        prompt, completion = map(self._store.keep, (encoded.prompt, *encoded.completions))
        asked = self._kept(encoded.asked)
        from penchant.data.tokenised import TokenisedLabel

        return TokenisedLabel(prompt, completion, label.desirable, label.where, asked)

    def _kept(self, ids: list[int] | None) -> Sequence[int] | None:
        return None if ids is None else self._store.keep(ids)

    def _prompt(self, prompt: Prompt, report: TokenReport) -> TokenisedPrompt:
        from penchant.data.tokenised import TokenisedPrompt

        return TokenisedPrompt(self._fitted(prompt, (), report).prompt, prompt, prompt.where)

    def _fitted(self, record: Record, completions: Sequence[Text], report: TokenReport) -> Encoded:
        """The tokens of a record's prompt and of completions, within the lengths allowed."""
        prompt = record.prompt
        try:
            encoded = self._encoded(record, completions, report)
        except TemplateRefusal as error:
            # Some templates insist on alternating roles, or know no system message.
            raise Dropped(f"the chat template refused the messages ({error})") from error
        report.add_lost(encoded.lost, record.where)
        report.placed_apart += encoded.placed_apart
        report.tokenised_apart += encoded.tokenised_apart
        if not encoded.prompt:
            raise Dropped("prompt without tokens")
        if max(len(encoded.prompt), len(encoded.asked or ())) > self.max_prompt_length:
            from penchant.data.cutting import cut_prompt

            if encoded.asked:
                encoded.asked = cut_prompt(self, prompt, encoded.asked)
            longer = len(encoded.prompt) > self.max_prompt_length
            encoded.prompt = cut_prompt(self, prompt, encoded.prompt)
            report.prompts_cut += longer
        room = self.max_length - len(encoded.prompt)
        num_cut = sum(len(ids) > room for ids in encoded.completions)
        encoded.completions = [ids[:room] for ids in encoded.completions]
        if not all(map(num_trained, encoded.completions)):
            raise Dropped("no token that is trained on is left in max_length")
        report.completions_cut += num_cut
        return encoded

    def _encoded(self, record: Record, completions: Sequence[Text], report: TokenReport) -> Encoded:
        prompt = record.prompt
        if not is_chat(prompt):
            return self.single(prompt, completions)
        if prompt[0].get("chat_template_kwargs"):
            from penchant.data.chats import unread_kwargs

            for name in unread_kwargs(self.tokenizer, prompt):
                report.unread[name] = report.unread.get(name, 0) + 1
        chats = [one for one in completions if is_chat(one)]
        if all(len(one) == 1 for one in chats):
            return self.single(prompt, completions)
        from penchant.data.turns import Rewritten, encode_turns  # most answers are one turn

        try:
            return encode_turns(self, prompt, chats)
        except Rewritten as error:
            report.rewritten += 1
            report.rewritten_example = report.rewritten_example or f"{record.where}: {error.turn}"
            raise

    def single(self, prompt: Text, completions: Sequence[Text]) -> Encoded:
        """The tokens of a prompt and of completions of one turn each; not cut."""
        before, written = self._written.take(prompt, completions) or self._write(
            prompt, completions
        )
        prompt_ids = self._prompt_ids(prompt, before)
        lost: list[tuple[str, str]] = []
        if is_chat(prompt):
            from penchant.data.rendered import lost_parts  # plain strings lose nothing

            lost += lost_parts(prompt, before, answer=False)
            for one, (text, _) in zip(completions, written, strict=True):
                lost += lost_parts(one, text, answer=True) if is_chat(one) else ()
        if not completions:
            return Encoded(prompt_ids, [], lost)
        texts, together = zip(*written, strict=True)
        answers = [self._behind(prompt_ids, before, text, is_chat(prompt)) for text in texts]
        apart = not all(together) or not all(answers)
        if apart:
            answers = [self.encode(text, special=False) for text in texts]
        finished: list[Sequence[int]] = [self.finish(ids) for ids in answers]
        return Encoded(prompt_ids, finished, lost, not all(together), apart)

    def _write(self, prompt: Text, completions: Sequence[Text]) -> Written:
        """The prompt's text, and each completion's as it follows, with whether it does so."""
        before = self._prompt_text(prompt)
        return before, [self._completion_text(prompt, before, one) for one in completions]

    def _write_ahead(self, records: Sequence[Record]) -> None:
        """Write records of one turn and encode their texts, all in one call."""
        texts: dict[bool, list[str]] = {False: [], True: []}
        for record in records:
            prompt, completions = record.prompt, completions_of(record)
            if any(is_chat(one) and len(one) > 1 for one in completions):
                continue
            try:
                before, written = self._write(prompt, completions)
            except TemplateRefusal:
                continue  # it is raised again where it counts
            self._written.keep(prompt, completions, (before, written))
            special = not is_chat(prompt)
            texts[special] += [before, *(before + text for text, _ in written)]
        for special, some in texts.items():
            self._encoder.ahead(some, special=special)

    def _prompt_text(self, prompt: Text) -> str:
        return self.render(prompt, generation_prompt=True) if is_chat(prompt) else prompt

    def _behind(self, prompt_ids: list[int], before: str, text: str, chat: bool) -> list[int]:
        """The completion's tokens after the prompt's; none where the two merge."""
        whole = self.encode(before + text, special=not chat)
        start = len(prompt_ids)
        return whole[start:] if whole[:start] == prompt_ids else []

    def _completion_text(self, prompt: Text, before: str, completion: Text) -> tuple[str, bool]:
        """What follows the prompt's text, and whether the template renders the two that way."""
        if not is_chat(completion):
            return completion, True
        assert is_chat(prompt)
        whole = self.render((*prompt, *completion), generation_prompt=False)
        if whole.startswith(before):
            return whole[len(before) :], True
        # The template renders earlier turns differently once there is an answer: keep the answer
        # as it renders, after the prompt as the model meets it.
        thought = {name: PLACEHOLDER for name in REASONING if name in completion[0]}
        other: Message = {**completion[0], "content": PLACEHOLDER, **thought}  # type: ignore[typeddict-item]
        head = self.render((*prompt, other), generation_prompt=False).partition(PLACEHOLDER)[0]
        return whole[len(head) :] if whole.startswith(head) else completion[0]["content"], False

    def finish(self, ids: list[int]) -> list[int]:
        """End on exactly one end token; template white space after it is not trained on."""
        end = self.end_of(ids)
        return [*ids, int(self.tokenizer.eos_token_id)] if end is None else ids[:end]

    def end_of(self, ids: Sequence[int]) -> int | None:
        """Where a turn ends: after the first of the end tokens that only blanks follow, if any."""
        first_end = None
        for i in reversed(range(len(ids))):
            if ids[i] in self.end_ids:
                first_end = i
            elif not self._is_blank(ids[i]):
                break
        return None if first_end is None else first_end + 1

    def render(self, messages: Messages, *, generation_prompt: bool) -> str:
        """A chat as the template writes it."""
        from penchant.data.chats import render  # plain strings need no template

        return render(self.tokenizer, messages, generation_prompt=generation_prompt)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text, with at most one BOS token."""
        return self._encoder(text, special=special)

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = (
                token not in self.end_ids and not str(self.tokenizer.decode([token])).strip()
            )
        return self._blank[token]
