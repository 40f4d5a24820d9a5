"""Two models' answers to the same prompts: a model and its start, or any two."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from penchant.commands.opened import Opened, off_is_start, open_model, tuned_from
from penchant.core.errors import ConfigError, ModelError
from penchant.core.machine import out_of_memory_explained, release_memory
from penchant.core.screen import track
from penchant.data.prompts import Prompt
from penchant.data.records import counted, is_chat
from penchant.models.scoring import Scorer
from penchant.rl.rewards.samples import Sample, make_sample
from penchant.rl.sampling.answers import LESS
from penchant.rl.sampling.base import Draw
from penchant.rl.sampling.sampler import CachedSampler

if TYPE_CHECKING:
    from penchant.data.tokenised import TokenisedPrompt
    from penchant.rl.sampling.base import Completion

logger = logging.getLogger("penchant")

# How a run reads and computes, which holds for its start too.
OF_THE_RUN = (
    *("max_length", "max_prompt_length", "chat_template", "chat_template_kwargs"),
    *("precision", "dtype", "quantization", "trust_remote_code"),
)


def answer_both(
    opened: Opened,
    other: Opened | None,
    prompts: Sequence[Prompt],
    draw: Draw,
    batch_size: int,
) -> tuple[list[Sample], list[Sample]]:
    """The answers of two models to the prompts that both can read, `[prompts]` each.

    Only one model is in memory at a time; an adapter is switched off to be its own
    start, unless it has changed its base.

    Args:
        opened: the model.
        other: to compare it with; None: what it started from.
        prompts: that both are asked.
        draw: how answers are drawn; both get the same random numbers.
        batch_size: answers that are drawn side by side.

    Raises:
        UserError: a model that gives no answers, or that does not say what it started from.
    """
    second = _start(opened) if other is None else other
    for one in (opened, second):
        if one is not None:
            _require_policy(one)
    as_chat = opened.why_plain() is None
    first = then = _tokenised(opened, prompts, as_chat)
    if second is not None:
        as_chat = as_chat if other is None else second.why_plain() is None
        then = _tokenised(second, prompts, as_chat)
    both = [number for number in first.examples if number in then.examples]
    if len(both) < len(prompts):
        left = counted(len(prompts) - len(both), "prompt")
        logger.warning("%s left out, which not both models could read", left)
    if not both:
        raise ConfigError("no prompt is left that both models can read")
    asked, draw = [prompts[number] for number in both], replace(draw, numbers=both)
    model = opened.load(keep_adapter=True)
    own = _answers(first, model, asked, draw, batch_size)
    if second is None:
        with model.disable_adapter():
            return own, _answers(first, model, asked, draw, batch_size)
    del model
    release_memory()
    return own, _answers(then, second.load(keep_adapter=True), asked, draw, batch_size)


def _start(opened: Opened) -> Opened | None:
    """What a model started from; None where that is the model with its adapter switched off."""
    if off_is_start(opened.folder):
        return None
    name = tuned_from(opened.name, opened.folder)
    if name is None:
        raise ConfigError(
            f"{opened.name} says nothing about what it was tuned from; give the model to compare "
            "it with: against"
        )
    keys = {key: getattr(opened.config, key) for key in OF_THE_RUN}
    return open_model(name, 1, keys)


def _require_policy(opened: Opened) -> None:
    if opened.config.spec.model == "score":
        raise ModelError(
            f"{opened.name} is a reward model, which scores answers and gives none; compare "
            "policies, and name it as what judges them: reward"
        )


class _Tokenised(NamedTuple):
    """The prompts that a model can read, by their numbers, and the tokens that end an answer."""

    opened: Opened
    examples: dict[int, TokenisedPrompt]
    end_ids: list[int]


def _tokenised(opened: Opened, prompts: Sequence[Prompt], as_chat: bool) -> _Tokenised:
    """Prompts as the model is asked them, before its weights are loaded."""
    records = [_asked(prompt, as_chat) for prompt in prompts]
    if opened.config.chat_template_kwargs:
        from penchant.data.rows.template import with_kwargs

        records = with_kwargs(records, opened.config.chat_template_kwargs)
    numbers = {id(record): number for number, record in enumerate(records)}
    tokeniser = opened.tokeniser()
    examples, report = tokeniser.prompts(track(records, "tokenising prompts"))
    logger.info("%s: %s", opened.name, report.summary())
    read = {numbers[id(example.record)]: example for example in examples}
    return _Tokenised(opened, read, sorted(tokeniser.end_ids))


def _answers(
    asked: _Tokenised, model: Any, prompts: Sequence[Prompt], draw: Draw, batch_size: int
) -> list[Sample]:
    """The answers of a model to the prompts whose numbers are drawn for."""
    opened = asked.opened
    examples = [asked.examples[number] for number in draw.numbers_of(prompts)]
    sampler = CachedSampler(Scorer(model, opened.pad_token_id), asked.end_ids, batch_size)
    with out_of_memory_explained("answers were drawn", LESS), opened.accelerator.autocast():
        drawn = sampler.sample([one.prompt for one in examples], draw)
    return [
        _sample(prompt, example, completion, opened.tokenizer)
        for prompt, example, (completion,) in zip(prompts, examples, drawn, strict=True)
    ]


def _sample(
    prompt: Prompt, example: TokenisedPrompt, completion: Completion, tokenizer: Any
) -> Sample:
    """An answer to a prompt as the user wrote it, which reward models read as it was asked."""
    sample = make_sample(prompt, example.prompt, completion, tokenizer)
    asked = example.record.prompt
    if isinstance(asked, str) or is_chat(prompt.prompt):
        return sample
    return replace(sample, as_chat=asked)


def _asked(prompt: Prompt, as_chat: bool) -> Prompt:
    """A prompt as the model is asked: a plain text is a user's message where it reads chats."""
    if is_chat(prompt.prompt) or not as_chat:
        return replace(prompt)
    return replace(prompt, prompt=({"role": "user", "content": prompt.prompt},))
