"""A model that answers prompts and rewards that score the answers, for `build_from_samples`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.core.errors import ConfigError
from penchant.core.machine import out_of_memory_explained, resolve_precision
from penchant.core.screen import setup_logging
from penchant.data.building.rules import Choice
from penchant.data.building.sampled import build_from_samples, require_place
from penchant.data.named_words import parse_kwargs
from penchant.data.prompts import Prompt
from penchant.data.records import DataError
from penchant.data.rows.template import require_free, with_kwargs
from penchant.data.tokenise import Tokeniser
from penchant.models.load import DTYPES, end_token_ids, load_causal_model, load_tokenizer
from penchant.models.locate import resolve
from penchant.models.scoring import Scorer
from penchant.rl.rewards.make import ModelContext, RewardOptions, find_rewards, make_rewards
from penchant.rl.rewards.samples import make_sample
from penchant.rl.sampling.answers import LESS
from penchant.rl.sampling.base import Completion, Draw, Sampling
from penchant.rl.sampling.sampler import CachedSampler
from penchant.rl.sampling.text import answer_text
from penchant.training.accelerator import make_accelerator

if TYPE_CHECKING:
    from penchant.data.building import Built
    from penchant.data.opening import Source

logger = logging.getLogger("penchant")


class Drawer:
    """Samples answers from a model, and scores them.

    Args:
        model: a run, a folder, a hub id, a .gguf file or an adapter.
        rewards: as for `make_rewards`; several are added up as they are.
        max_completion_length: tokens of an answer.
        max_prompt_length: tokens of a prompt; longer ones are cut on the left.
        temperature, top_p, top_k: as for `Sampling`.
        batch_size: answers that are drawn side by side.
        chat_template: a Jinja file or chatml, in place of the model's.
        chat_template_kwargs: options of the template; a row's own go before them.
        trust_remote_code: run code that comes with the model.
    """

    @out_of_memory_explained(
        "the model and its rewards were loaded", "give smaller ones, or a function as the reward"
    )
    def __init__(
        self,
        model: str | Path,
        rewards: Sequence[str | Callable[..., Any]],
        *,
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
        if not rewards:
            raise ConfigError("reward names nothing; give a reward model or a function")
        found = find_rewards(rewards, trust_remote_code=trust_remote_code)
        self.accelerator = make_accelerator("auto")
        device = self.accelerator.device
        name = resolve(str(model))
        self.tokenizer = load_tokenizer(
            name, chat_template=chat_template, trust_remote_code=trust_remote_code
        )
        precision = resolve_precision("auto", device)
        loaded: Any = load_causal_model(
            name,
            dtype=DTYPES[precision],
            trust_remote_code=trust_remote_code,
        ).to(device)
        self.tokeniser = Tokeniser(
            self.tokenizer,
            end_token_ids=end_token_ids(loaded),
            max_length=max_prompt_length + max_completion_length,
            max_prompt_length=max_prompt_length,
        )
        self.kwargs = parse_kwargs(chat_template_kwargs or {})
        require_free(self.kwargs)
        self.sampling = Sampling(max_completion_length, temperature, top_k, top_p)
        pad = self.tokenizer.pad_token_id
        self.sampler = CachedSampler(
            Scorer(loaded, int(pad)), sorted(self.tokeniser.end_ids), batch_size
        )
        context = ModelContext(
            self.tokenizer,
            device=device,
            precision=precision,
            autocast=self.accelerator.autocast,
            trust_remote_code=trust_remote_code,
        )
        named = {"reward": list(map(str, rewards)), "reward_normalization": "none"}
        # An answer without a score is left out of the pairs.
        options = RewardOptions.model_validate({**named, "on_reward_error": "drop"})
        self.rewards = make_rewards(found, options, context)
        for text in self.rewards.findings:
            logger.info("%s", text)
        self._drawn: list[tuple[list[int], Completion]] = []

    @out_of_memory_explained("answers were drawn", LESS)
    def sample(self, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[str]]:
        """`n` answers to each prompt, as text."""
        examples, report = self.tokeniser.prompts(with_kwargs(prompts, self.kwargs))
        if report.dropped:
            reasons = ", ".join(report.dropped)
            raise DataError(
                f"a prompt from {prompts[0].where} to {prompts[-1].where} cannot be asked: "
                f"{reasons}; remove it"
            )
        ids = [one.prompt for one in examples]
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
        UserError: as `build_from_samples`, and where a model or reward cannot be loaded.
    """
    require_place(output)  # before a model takes its time to load
    drawer = Drawer(model, reward, **sampling)
    names = [one if isinstance(one, str) else one.__name__ for one in reward]
    about = {"model": str(model), "reward": names, **sampling}
    built = build_from_samples(
        source, output, sample=drawer.sample, score=drawer.score, n=n, pairs=pairs,
        min_gap=min_gap, batch_size=prompts_at_once, seed=seed, about=about, split=split,
        columns=columns, strict=strict,
    )  # fmt: skip
    for name, usage in drawer.rewards.usage().items():
        logger.info("%s: %s", name, usage)
    return built
