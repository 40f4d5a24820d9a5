"""Reward functions and models as TRL calls them, made rewards of Penchant's."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from penchant.compat.trl.objects import padded, require_trainable
from penchant.core.errors import ConfigError, RewardError
from penchant.data.chats import render

if TYPE_CHECKING:
    pass

logger = logging.getLogger("penchant")

# What TRL passes beside the data's columns: nothing of training depends on the first two.
UNHEEDED = ("log_extra", "log_metric")
REFUSED = ("trainer_state", "environments")


def as_rewards(reward_funcs: Any, processing_classes: Any) -> list[Any]:
    """What judges the answers, from TRL's arguments.

    Args:
        reward_funcs: a function, a model or its name, or a list of them.
        processing_classes: the tokenizers of the models, one for each of `reward_funcs`, or None.

    Raises:
        UserError: one of them cannot judge answers here.
    """
    if reward_funcs is None or reward_funcs == []:
        raise ConfigError("a trainer needs something that judges answers; set reward_funcs")
    rewards = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    many = isinstance(processing_classes, list | tuple)
    tokenizers = list(processing_classes) if many else [processing_classes] * len(rewards)
    if len(tokenizers) != len(rewards):
        raise ConfigError(
            f"reward_processing_classes has {len(tokenizers)} entries for {len(rewards)} "
            "reward_funcs; give one each, None for a function"
        )
    alone = len(rewards) == 1
    return [_reward(one, own, alone) for one, own in zip(rewards, tokenizers, strict=True)]


def _reward(reward: Any, tokenizer: Any, alone: bool) -> Any:
    if isinstance(reward, torch.nn.Module):
        return ModelReward(reward, tokenizer)
    if isinstance(reward, str):
        if tokenizer is not None:
            raise ConfigError(
                f"reward_processing_classes: {reward} is a name and has its own tokenizer; pass "
                "the model, or None"
            )
        return reward
    if not callable(reward):
        raise ConfigError(
            f"reward_funcs must be functions, models or names, got {type(reward).__name__}"
        )
    return as_reward(reward, alone=alone)


def as_reward(function: Callable[..., Any], *, alone: bool) -> Callable[..., Any]:
    """A function that is called as TRL calls it: completions of chats are lists of messages.

    Args:
        function: the script's.
        alone: no other judges the answers: None leaves an answer out, and else adds nothing.

    Raises:
        ConfigError: it asks for what only TRL has.
    """
    parameters = inspect.signature(function).parameters
    name = getattr(function, "__name__", type(function).__name__)
    if refused := [one for one in REFUSED if one in parameters]:
        raise ConfigError(
            f"reward_funcs: {name} asks for {' and '.join(refused)}, which cannot be had here; "
            "drop it from its signature"
        )
    unheeded = dict.fromkeys(one for one in UNHEEDED if one in parameters)
    if unheeded:
        logger.info("reward_funcs: %s is passed None for %s", name, " and ".join(unheeded))
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())

    def reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
        arguments = {
            "prompts": prompts,
            "completions": as_messages(prompts, completions),
            "completion_ids": completion_ids,
            **columns,
            **unheeded,
        }
        passed = {n: v for n, v in arguments.items() if takes_all or n in parameters}
        try:
            scores = function(**passed)
            scores = _awaited(scores) if inspect.iscoroutine(scores) else scores
        except Exception as error:  # for None an answer is left out, for this nothing goes on
            raise RewardError(
                f"reward {name} raised {type(error).__name__}: {error}; put the function right"
            ) from error
        if alone or not isinstance(scores, list | tuple):
            return scores
        return [0.0 if score is None else score for score in scores]

    reward.__name__ = name
    own = inspect.signature(reward).parameters
    # What must be a column of the data is seen in the signature.
    columns = [
        one.replace(kind=one.KEYWORD_ONLY)
        for n, one in parameters.items()
        if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        and n not in own
        and n not in unheeded
    ]
    *named, rest = own.values()
    reward.__signature__ = inspect.Signature([*named, *columns, rest])  # type: ignore[attr-defined]
    return reward


def as_messages(prompts: Sequence[Any], completions: Sequence[str]) -> Sequence[Any]:
    """Completions as TRL has them: those of chats are each a list of one message."""
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, completions, strict=True)
    ]


class ModelReward:
    """A sequence classifier with one label, which scores prompt and completion as one text.

    Args:
        model: the classifier.
        tokenizer: its own; None: loaded by the model's name.

    Raises:
        UserError: it is no such model.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        from transformers import AutoTokenizer

        require_trainable(model, scored=True)
        name = model.config._name_or_path
        self.__name__ = str(name).rstrip("/").rpartition("/")[2] or type(model).__name__
        own = padded(AutoTokenizer.from_pretrained(name) if tokenizer is None else tokenizer)
        assert own is not None
        self.model, self.tokenizer = model.eval().requires_grad_(False), own
        model.config.pad_token_id = own.pad_token_id  # transformers finds the last token by it

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        """One score an answer."""
        texts = [
            prompt + answer
            if isinstance(prompt, str)
            else render(self.tokenizer, (*prompt, *answer), generation_prompt=False)
            for prompt, answer in zip(prompts, as_messages(prompts, completions), strict=True)
        ]
        inputs = self.tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
        )
        logits = self.model(**inputs.to(self.model.device)).logits
        scores: list[float] = logits[:, 0].float().tolist()
        return scores


def _awaited(scores: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives, in a thread of its own: a notebook's has a loop that runs already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, scores).result()
