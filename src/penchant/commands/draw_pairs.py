"""A model that answers prompts and rewards that score the answers, for `build_from_samples`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.commands.opened import saved_tokeniser
from penchant.config.keys import load_config
from penchant.core.machine import out_of_memory_explained, resolve_precision
from penchant.core.screen import setup_logging, track
from penchant.data.building.rules import Choice
from penchant.data.building.sampled import build_from_samples, require_place
from penchant.data.prompts import Prompt
from penchant.data.records import DataError, counted
from penchant.data.rows.template import with_kwargs
from penchant.models.load import DTYPES, load_causal_model, load_tokenizer
from penchant.models.locate import resolve
from penchant.models.scoring import Scorer
from penchant.rl.rewards.make import (
    ModelContext,
    Rewards,
    find_rewards,
    make_rewards,
    require_judging,
)
from penchant.rl.rewards.samples import make_sample
from penchant.rl.sampling.answers import LESS
from penchant.rl.sampling.base import Completion, Draw, Sampling
from penchant.rl.sampling.sampler import CachedSampler
from penchant.rl.sampling.text import answer_text
from penchant.training.accelerator import make_accelerator

if TYPE_CHECKING:
    from penchant.data.building import Built
    from penchant.data.opening import Source
    from penchant.data.token_report import TokenReport
    from penchant.data.tokenised import TokenisedPrompt

logger = logging.getLogger("penchant")


class Drawer:
    """Samples answers from a model, and scores them; nothing is loaded until it is to prepare.

    Args:
        model: a run, a folder, a hub id, a .gguf file or an adapter.
        rewards: as for `make_rewards`; several are added up as they are.
        num_answers: to each prompt, which are scored together.
        max_completion_length: tokens of an answer.
        max_prompt_length: tokens of a prompt; longer ones are cut on the left.
        temperature, top_p, top_k: as for `Sampling`.
        batch_size: answers that are drawn side by side.
        chat_template: a Jinja file or chatml, in place of the model's.
        chat_template_kwargs: options of the template; a row's own go before them.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: a number is out of its range, or a reward is not there, or is none.
    """

    def __init__(
        self,
        model: str | Path,
        rewards: Sequence[str | Callable[..., Any]],
        *,
        num_answers: int = 1,
        max_completion_length: int = 512,
        max_prompt_length: int = 1024,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        batch_size: int = 32,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        setup_logging()
        keys = {
            "model": str(model),
            "data": "prompts",
            "reward": list(map(str, rewards)),
            "reward_normalization": "none",
            "on_reward_error": "drop",  # an answer without a score is left out of the pairs
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "max_completion_length": max_completion_length,
            "max_prompt_length": max_prompt_length,
            "max_length": max_prompt_length + max_completion_length,
            "batch_size": batch_size,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "chat_template": chat_template,
            "chat_template_kwargs": chat_template_kwargs or {},
            "trust_remote_code": trust_remote_code,
        }
        # They mean what they do in training online, where they are checked too.
        self.config = load_config("ppo", keys)
        self.found = find_rewards(
            rewards, num_answers=num_answers, trust_remote_code=trust_remote_code
        )
        self.sampling = Sampling(max_completion_length, temperature, top_k, top_p)
        self.rewards: Rewards | None = None
        self._drawn: list[tuple[list[int], Completion]] = []

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Load the model and the rewards, if all prompts can be asked and their answers judged.

        Raises:
            UserError: a prompt cannot be asked, or lacks what a reward needs; or the model or a
                reward is not there, or cannot serve.
        """
        config, trusted = self.config, self.config.trust_remote_code
        self.accelerator = make_accelerator(config.precision)
        folder = resolve(config.model)
        self.tokenizer = load_tokenizer(
            folder, chat_template=config.chat_template, trust_remote_code=trusted
        )
        self.tokeniser = saved_tokeniser(folder, config, self.tokenizer)
        _, report = self._tokenised(track(prompts, "tokenising prompts"))
        logger.info("%s", report.summary())
        if report.dropped:
            reasons = "; ".join(
                f"{num}: {reason}, such as {report.dropped_examples[reason]}"
                for reason, num in report.dropped.items()
            )
            num = counted(sum(report.dropped.values()), "prompt")
            raise DataError(f"{num} cannot be asked ({reasons}); take them out, or correct them")
        require_judging(self.found, prompts)
        self._load(folder)

    @out_of_memory_explained(
        "the model and its rewards were loaded", "give smaller ones, or a function as the reward"
    )
    def _load(self, folder: str) -> None:
        device, trusted = self.accelerator.device, self.config.trust_remote_code
        precision = resolve_precision(self.config.precision, device)
        loaded: Any = load_causal_model(
            folder, dtype=DTYPES[precision], trust_remote_code=trusted
        ).to(device)
        options: Any = self.config.options
        pad = self.tokenizer.pad_token_id
        self.sampler = CachedSampler(
            Scorer(loaded, int(pad)), sorted(self.tokeniser.end_ids), options.batch_size
        )
        context = ModelContext(
            self.tokenizer,
            device=device,
            precision=precision,
            autocast=self.accelerator.autocast,
            trust_remote_code=trusted,
        )
        self.rewards = make_rewards(self.found, options, context)
        for text in self.rewards.findings:
            logger.info("%s", text)

    def _tokenised(self, prompts: Iterable[Prompt]) -> tuple[list[TokenisedPrompt], TokenReport]:
        return self.tokeniser.prompts(with_kwargs(prompts, self.config.chat_template_kwargs))

    @out_of_memory_explained("answers were drawn", LESS)
    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[str]]:
        """`n` answers to each of some prompts that are prepared for, as text."""
        ids = [one.prompt for one in self._tokenised(prompts)[0]]
        with self.accelerator.autocast():
            drawn = self.sampler.sample(ids, Draw(self.sampling, seed, n))
        self._drawn = [
            (prompt, completion)
            for prompt, completions in zip(ids, drawn, strict=True)
            for completion in completions
        ]
        return [[self._text(one) for one in completions] for completions in drawn]

    @out_of_memory_explained("answers were judged", "give a smaller reward model, or a function")
    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """The weighted rewards of the answers that were drawn last, in their order.

        Returns:
            NaN for an answer that a reward fails on.

        Raises:
            RewardError: a reward fails on all of them.
        """
        assert self.rewards is not None, "it is prepared"
        samples = [
            make_sample(prompt, ids, completion, self.tokenizer)
            for prompt, (ids, completion) in zip(prompts, self._drawn, strict=True)
        ]
        return list(self.rewards.score(samples).raw)

    def _text(self, completion: Completion) -> str:
        return answer_text(completion.ids, self.tokenizer, ended=completion.ended)


def build_with_model(
    source: Source,
    output: str | Path,
    *,
    model: str | Path,
    reward: Sequence[str | Callable[..., Any]],
    n: int = 4,
    pairs: Choice = "best_worst",
    min_gap: float = 0.0,
    prompts_at_once: int = 8,
    seed: int = 0,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    **sampling: Any,
) -> Built:
    """Sample a model's answers to prompts, score them and pair them up; called again, it goes on.

    Args:
        source, output, n, pairs, min_gap, seed: as for `build_from_samples`.
        split, columns, strict: likewise.
        model, reward, sampling: as for `Drawer`.
        prompts_at_once: prompts that are answered and written together.

    Raises:
        UserError: as `build_from_samples`, and where a number is out of its range, a prompt cannot
            be asked, or a model or reward cannot be loaded.
    """
    require_place(output)
    drawer = Drawer(model, reward, num_answers=n, **sampling)
    names = [one if isinstance(one, str) else one.__name__ for one in reward]
    about = {"model": str(model), "reward": names, **sampling}
    built = build_from_samples(
        source, output, sample=drawer.sample, score=drawer.score, prepare=drawer.prepare,
        n=n, pairs=pairs, min_gap=min_gap, batch_size=prompts_at_once, seed=seed, about=about,
        split=split, columns=columns, strict=strict,
    )  # fmt: skip
    if drawer.rewards is not None:
        for name, usage in drawer.rewards.usage().items():
            logger.info("%s: %s", name, usage)
    return built
