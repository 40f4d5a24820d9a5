"""Answers for `PPOTrainer.generate`: which settings hold, and what draws them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from penchant.compat.trl.arguments import Refusals
from penchant.compat.trl.tables import Standing
from penchant.rl.sampling.base import Draw, Sampling
from penchant.rl.sampling.prefill import padded_left
from penchant.rl.sampling.sampler import CachedSampler

if TYPE_CHECKING:
    from penchant.compat.trl.ppo.tokens import Tokens
    from penchant.models.scoring import Scorer

# What transformers' `generate` keeps of the likeliest tokens where nothing is said.
TOP_K = 50
GENERATION_STANDING: Standing = {
    "num_return_sequences": ((None, 1), "`step` learns from one response a query; drop it"),
    "return_dict_in_generate": ((None, False), "tensors are returned; drop it"),
    "remove_padding": ((True,), "responses end with their end token; drop it"),
    "pad_to_multiple_of": ((None,), "drop it"),
    "inputs": ((None,), "pass the queries"),
    "input_ids": ((None,), "pass the queries"),
    "attention_mask": ((None,), "pass the queries as a list, or padded with the pad token"),
}
OWN = {"do_sample", "temperature", "top_k", "top_p", "max_new_tokens", "eos_token_id"}
# Settings that change nothing of what is drawn: all values, or this one.
SILENT = {
    *("pad_token_id", "bos_token_id", "transformers_version", "use_cache", "max_length"),
    *("decoder_start_token_id", "output_scores", "output_attentions", "output_hidden_states"),
}
NEUTRAL = {
    **{"num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "min_length": 0},
    **{"min_new_tokens": 0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0},
    **{"length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0},
    **{"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "diversity_penalty": 0.0},
    **{"early_stopping": False, "remove_invalid_values": False, "return_dict_in_generate": False},
}


@dataclass(frozen=True)
class Request:
    """How answers are to be drawn.

    Attributes:
        sampling: temperature 0 where they are not sampled.
        end_token_ids: any of them ends an answer.
        settings: transformers' own, where only its `generate` can serve them, else None.
        others: arguments of `generate` that are no settings.
        shaping: settings that change what is drawn and not the log-probs.
    """

    sampling: Sampling
    end_token_ids: list[int]
    settings: Any
    others: dict[str, Any]
    shaping: list[str]

    @property
    def distribution(self) -> dict[str, Any]:
        """What log-probs are taken of: `sample_from`'s arguments."""
        if not self.sampling.temperature:
            return {"temperature": 1.0}
        drawn = self.sampling
        return {"temperature": drawn.temperature, "top_k": drawn.top_k, "top_p": drawn.top_p}

    @property
    def cautions(self) -> list[str]:
        """What a user should know of it."""
        messages = []
        if not self.sampling.temperature:
            messages.append("answers are not sampled, PPO learns from samples; pass do_sample=True")
        if self.shaping:
            messages.append(
                f"{', '.join(self.shaping)} changes what is sampled, but not the log-probs that "
                "PPO learns from; drop it"
            )
        return messages


def read_request(model: Any, arguments: Mapping[str, Any], end_token_ids: list[int]) -> Request:
    """What `generate`'s arguments come to, beside the model's own generation settings.

    Args:
        model: a transformers model.
        arguments: as `generate` got them.
        end_token_ids: where neither names an end token.

    Raises:
        ConfigError: an argument that cannot have its effect.
    """
    given = dict(arguments)
    refusals = Refusals()
    named = {name: given.pop(name) for name in GENERATION_STANDING if name in given}
    refusals.settle(named, GENERATION_STANDING, ())
    refusals.raise_all()
    if (given.get("min_length") or 0) <= 0:
        given.pop("min_length", None)  # -1 said so before transformers refused it
    settings = copy.deepcopy(given.pop("generation_config", None) or model.generation_config)
    others = settings.update(**given)
    wanted = {k: v for k, v in settings.to_diff_dict().items() if v is not None}
    shaping = [
        name
        for name, value in wanted.items()
        if name not in OWN | SILENT
        and not name.startswith("_")
        and not (name in NEUTRAL and value == NEUTRAL[name])
    ]
    ends = settings.eos_token_id
    served = not shaping and not others and settings.max_new_tokens is not None
    top_k = TOP_K if settings.top_k is None else int(settings.top_k)
    return Request(
        sampling=Sampling(
            max_completion_length=settings.max_new_tokens or 0,
            temperature=_or(settings.temperature, 1.0) if settings.do_sample else 0.0,
            top_k=top_k,
            top_p=_or(settings.top_p, 1.0),
        ),
        end_token_ids=end_token_ids if ends is None else [ends] if isinstance(ends, int) else ends,
        settings=None if served else settings,
        others=others,
        shaping=[*shaping, *(n for n in ("logits_processor",) if n in others)],
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def answer(
    scorer: Scorer,
    prompts: Sequence[Tokens],
    arguments: Mapping[str, Any],
    *,
    length_sampler: Callable[[], int] | None,
    end_token_ids: list[int],
    batch_size: int,
) -> tuple[list[Tokens], Request]:
    """One answer to each prompt, its end token included, and how they were drawn.

    Args:
        scorer: whose model answers; torch's random state decides.
        prompts: token ids, at least one.
        arguments, end_token_ids: as for `read_request`.
        length_sampler: draws `max_new_tokens` once for every `batch_size` prompts.
        batch_size: answers that are drawn side by side.
    """
    size = batch_size if length_sampler else len(prompts)
    rows: list[Tokens] = []
    for start in range(0, len(prompts), size):
        length = {"max_new_tokens": length_sampler()} if length_sampler else {}
        request = read_request(scorer.causal_model, {**arguments, **length}, end_token_ids)
        rows += _drawn(scorer, prompts[start : start + size], request, batch_size)
    return rows, request


def _drawn(
    scorer: Scorer, prompts: Sequence[Tokens], request: Request, batch_size: int
) -> list[Tokens]:
    if request.settings is None:
        sampler = CachedSampler(scorer, request.end_token_ids, batch_size)
        seed = int(torch.randint(2**31, ()))
        drawn = sampler.sample(prompts, Draw(request.sampling, seed))
        return [one.ids for (one,) in drawn]
    answers: list[Tokens] = []
    with torch.no_grad(), scorer.generating():
        for start in range(0, len(prompts), batch_size):
            answers += _by_transformers(scorer, prompts[start : start + batch_size], request)
    return answers


def _by_transformers(scorer: Scorer, prompts: Sequence[Tokens], request: Request) -> list[Tokens]:
    ids, mask = padded_left(prompts, scorer.pad_token_id, scorer.causal_model.device)
    settings = copy.deepcopy(request.settings)
    settings.eos_token_id = request.end_token_ids
    settings.pad_token_id = scorer.pad_token_id
    model: Any = scorer.model
    rows = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=settings, **request.others
    )
    return [_until(row[ids.shape[1] :].tolist(), set(request.end_token_ids)) for row in rows]


def _until(row: Tokens, ends: set[int]) -> Tokens:
    for i, token in enumerate(row):
        if token in ends:
            return row[: i + 1]
    return row
