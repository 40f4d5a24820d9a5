"""`penchant chat`: a conversation with a tuned model, beside it what it was tuned from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.commands.opened import (
    config_of,
    load_model,
    off_is_start,
    saved_tokeniser,
    tuned_from,
    why_plain,
)
from penchant.core.errors import ConfigError, ModelError
from penchant.core.screen import setup_logging
from penchant.data.records import Message, Text, is_chat
from penchant.data.token_report import TemplateRefusal
from penchant.models.load import load_tokenizer
from penchant.models.locate import resolve
from penchant.models.score_model import is_score_model
from penchant.models.scoring import Scorer
from penchant.rl.sampling.answers import Answer
from penchant.rl.sampling.base import Sampling, require_sampling
from penchant.rl.sampling.stream import stream_answer
from penchant.training.accelerator import make_accelerator

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.data.tokenise import Tokeniser

logger = logging.getLogger("penchant")

START, TUNED, ALONE = "start", "tuned", "answer"
# What stands for the start of a model that is the model itself with its adapter switched off.
SWITCHED_OFF = ""
# Turns under one seed that share no draw with those under the next.
SEEDS_APART = 1_000_003
# Of the model's keys, those that a chat may set; the others are the run's own.
KEYS = ("chat_template", "chat_template_kwargs", "trust_remote_code", "precision")


@dataclass
class _Speaker:
    """One of the models, with its own side of the conversation.

    Attributes:
        scorer: the model.
        switched: makes it the model that answers; another may share its weights.
        messages: what was said so far.
    """

    scorer: Scorer
    switched: Callable[[], AbstractContextManager[Any]] = nullcontext
    messages: list[Message] = field(default_factory=list)


class Chat:
    """A conversation with each of one or two models; both are asked the same.

    Args:
        speakers: by name; they are there when something is asked.
        tokeniser: of both.
        sampling: how answers are drawn.
        templated: what is said is a user's message; otherwise each prompt is plain text that
            stands alone.
        seed: of the draws.
        kwargs: options of the chat template.
        accelerator: whose precision answers are computed in.
    """

    def __init__(
        self,
        speakers: dict[str, _Speaker],
        tokeniser: Tokeniser,
        sampling: Sampling,
        *,
        templated: bool,
        seed: int,
        kwargs: Mapping[str, Any],
        accelerator: Accelerator,
    ) -> None:
        self.speakers, self.tokeniser, self.sampling = speakers, tokeniser, sampling
        self.templated, self.seed, self.kwargs = templated, seed, dict(kwargs)
        self.accelerator = accelerator
        self.system = ""
        self.turns = 0

    @property
    def names(self) -> list[str]:
        """Of the models, in the order in which they answer."""
        return list(self.speakers)

    def forget(self) -> None:
        """Begin a new conversation; the system message stays."""
        for speaker in self.speakers.values():
            speaker.messages.clear()

    def instruct(self, system: str) -> None:
        """Begin a new conversation under a system message; an empty one removes it.

        Raises:
            ConfigError: prompts are plain text.
        """
        if system and not self.templated:
            raise ConfigError(
                "a system message needs a chat template, and this model is asked in plain text"
            )
        self.system = system
        self.forget()

    def require(self, prompt: Text) -> None:
        """Refuse a prompt that cannot begin a conversation.

        Raises:
            ModelError: it is empty, or the template refuses it.
        """
        self._ids(self._said((), prompt))

    def ask(self, prompt: Text, on_text: Callable[[str, str], None]) -> dict[str, Answer]:
        """Ask every model, and keep prompt and answer for what follows.

        Args:
            prompt: what is said next; messages are a conversation of their own.
            on_text: gets the name of a model and a new piece of its answer.

        Returns:
            Their answers, by name.

        Raises:
            ModelError: the template refuses the messages, or the model has no room for them.
        """
        if is_chat(prompt):
            self.forget()
        said = {name: self._said(one.messages, prompt) for name, one in self.speakers.items()}
        answers = {name: self._answer(name, asked, on_text) for name, asked in said.items()}
        self.turns += 1
        for name, asked in said.items():  # once all have answered: an error leaves none behind
            if is_chat(asked):
                answer: Message = {"role": "assistant", "content": answers[name].text}
                self.speakers[name].messages[:] = [*asked, answer]
        return answers

    def _said(self, before: Sequence[Message], prompt: Text) -> Text:
        """The whole of what a model is asked, after what was said before."""
        if not is_chat(prompt) and not self.templated:
            return prompt
        new: Sequence[Message] = (
            prompt if is_chat(prompt) else [{"role": "user", "content": prompt}]
        )
        messages = [*before, *new]
        if self.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if self.kwargs:
            own = messages[0].get("chat_template_kwargs", {})
            messages[0] = {**messages[0], "chat_template_kwargs": {**self.kwargs, **own}}
        return tuple(messages)

    def _ids(self, said: Text) -> list[int]:
        """What is said, as tokens."""
        try:
            ids = self.tokeniser.prompt_ids(said)
        except TemplateRefusal as refusal:
            raise ModelError(f"the chat template refuses what was said: {refusal}") from refusal
        if not ids:
            raise ModelError("the prompt is empty; say something")
        return ids

    def _answer(self, name: str, said: Text, on_text: Callable[[str, str], None]) -> Answer:
        speaker, ids = self.speakers[name], self._ids(said)
        with speaker.switched(), self.accelerator.autocast():
            return stream_answer(
                speaker.scorer,
                self.tokeniser.tokenizer,
                ids,
                end_token_ids=sorted(self.tokeniser.end_ids),
                sampling=self.sampling,
                seed=self.seed * SEEDS_APART + self.turns,
                on_text=lambda piece: on_text(name, piece),
            )


def open_chat(
    model: str | Path,
    *,
    start: str | Path | None = None,
    system: str = "",
    prompts: Sequence[Text] = (),
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    **keys: Any,
) -> Chat:
    """Load a model, and beside it what it was tuned from.

    Args:
        model: a run directory, a folder, a hub id, a .gguf file, or an adapter.
        start: the other model; default: what the run or the adapter started from. `none`: the
            model is asked alone.
        system: a system message.
        prompts: what will be asked, each alone: what cannot be is refused before a model is loaded.
        max_new_tokens: of an answer.
        temperature: of the draws; 0 takes the likeliest token, so that the answers differ by the
            weights alone.
        top_p: draw from the smallest set of tokens that has this probability.
        seed: of the draws.
        keys: `chat_template`, `chat_template_kwargs`, `trust_remote_code`, `precision`; default:
            the run's own, but code of a model is run for `trust_remote_code=True` alone.

    Raises:
        UserError: a wrong value, a prompt that cannot be asked, or a model that cannot answer.
    """
    setup_logging()
    require_sampling(max_new_tokens, temperature, top_p)
    if unknown := keys.keys() - set(KEYS):
        raise ConfigError(f"a chat takes no {', '.join(sorted(unknown))}; it takes {KEYS}")
    folder = resolve(str(model))
    if is_score_model(folder):
        raise ModelError(
            f"{model} is a reward model, which scores answers and gives none; "
            "penchant evaluate measures it"
        )
    config = config_of(Path(model), folder, {**keys, "model": str(model), "data": "chat"})
    accelerator = make_accelerator(config.precision)
    tokenizer = load_tokenizer(
        folder, chat_template=config.chat_template, trust_remote_code=config.trust_remote_code
    )
    speakers: dict[str, _Speaker] = {}
    chat = Chat(
        speakers,
        saved_tokeniser(folder, config, tokenizer),
        Sampling(max_new_tokens, temperature=temperature, top_p=top_p),
        templated=_templated(Path(model), tokenizer),
        seed=seed,
        kwargs=config.chat_template_kwargs or {},
        accelerator=accelerator,
    )
    chat.instruct(system)
    for prompt in prompts:
        chat.require(prompt)
    beside = _start_of(Path(model), folder, start, config)
    policy = load_model(folder, config, accelerator, keep_adapter=True)
    scorer = Scorer(policy, int(tokenizer.pad_token_id))
    if beside == SWITCHED_OFF:
        speakers[START] = _Speaker(scorer, policy.disable_adapter)
    elif beside is not None:
        other = load_model(beside, config, accelerator)
        speakers[START] = _Speaker(Scorer(other, scorer.pad_token_id))
    speakers[TUNED if speakers else ALONE] = _Speaker(scorer)
    return chat


def _start_of(model: Path, folder: str, named: str | Path | None, config: RunConfig) -> str | None:
    """The resolved name of what the model started from, where that is known and wanted."""
    if named == "none":
        return None
    if named is None and off_is_start(folder):
        return SWITCHED_OFF
    name = named or tuned_from(model, folder)
    if name is None:
        logger.info("%s does not say what it was tuned from: it answers alone; --start", model)
        return None
    return resolve(str(name), config.cache_dir)


def _templated(model: Path, tokenizer: Any) -> bool:
    """Whether the model is asked through a chat template."""
    why = why_plain(model, tokenizer)
    if why is not None:
        logger.info("%s: each line is plain text, which it continues", why)
    return why is None
