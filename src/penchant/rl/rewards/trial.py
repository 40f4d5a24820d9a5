"""A reward tried on a few answers before a run, so that a person sees what it pays for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penchant.rl.rewards.functions import FunctionReward
from penchant.rl.rewards.judging import Rewards
from penchant.rl.rewards.ready import OPENED
from penchant.rl.rewards.samples import Sample, make_sample
from penchant.rl.sampling.base import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from penchant.data.tokenised import TokenisedPrompt
    from penchant.methods.online import RewardOptions
    from penchant.rl.rewards.samples import Reward

TRIED = 2
# Columns that hold a good answer, the likeliest first.
ANSWERS = ("answer", "solution", "chosen", "completion", "response", "output", "target")


@dataclass(frozen=True)
class Trial:
    """One answer and what it is worth.

    Attributes:
        prompt: as the policy reads it.
        answer: its text.
        sampled: whether the policy gave it; else it was made from the data.
        scores: of each reward and penalty, by name; NaN where a reward gave none.
    """

    prompt: str
    answer: str
    sampled: bool
    scores: Mapping[str, float]


def try_rewards(rewards: Rewards, samples: Sequence[Sample], *, sampled: bool) -> list[Trial]:
    """Score a few samples; the running statistics stay as they are.

    Raises:
        UserError: a reward cannot be called, or fails on a sample.
    """
    before = rewards.state_dict()
    by_name = rewards.score(samples).by_name
    rewards.load_state_dict(before)
    return [
        Trial(
            sample.rendered,
            sample.completion,
            sampled,
            {name: values[i] for name, values in by_name.items()},
        )
        for i, sample in enumerate(samples)
    ]


def try_functions(
    rewards: Sequence[Any],
    options: RewardOptions,
    examples: Sequence[TokenisedPrompt],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Trial]:
    """Score answers that are made from the data, by the functions among the rewards.

    Args:
        rewards: as `find_rewards` returned them; models are left out, as no weight is loaded.
        options: of the run.
        examples: prompts; the first few are taken.
        tokenizer: the policy's.

    Raises:
        UserError: as for `try_rewards`.
    """
    functions: list[Reward] = [one for one in rewards if isinstance(one, FunctionReward)]
    if not functions:
        return []
    plain = {"reward_weights": None, "reward_normalization": "none"}
    judge = Rewards(functions, options.model_copy(update=plain))
    tagged = any(reward.name == "format" for reward in functions)
    samples = [_made(example, tokenizer, tagged) for example in examples[:TRIED]]
    return try_rewards(judge, samples, sampled=False)


def _made(example: TokenisedPrompt, tokenizer: PreTrainedTokenizerBase, tagged: bool) -> Sample:
    """An answer with the row's own text, in the tags that the template or the reward asks for."""
    fields = example.record.fields
    known = [fields[name] for name in ANSWERS if isinstance(fields.get(name), str | int | float)]
    text = str(known[0] if known else "This is an answer.")
    opened = OPENED.search(str(tokenizer.decode(example.prompt)))
    if tagged:
        text = f"<answer>{text}</answer>"
    if opened is None:
        text = f"<think>This is a thought.</think>{text}" if tagged else text
    elif "</think>" not in opened[0]:
        text = f"This is a thought.</think>{text}"
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    completion = Completion([*ids, int(tokenizer.eos_token_id)], [], True)
    return make_sample(example.record, example.prompt, completion, tokenizer)
