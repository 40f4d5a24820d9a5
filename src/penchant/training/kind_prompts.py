"""What a run does whose method samples its own answers to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from penchant.core.errors import ConfigError
from penchant.data.batch import Group
from penchant.data.prompts import read_prompts
from penchant.data.shared_prompts import share_prompts
from penchant.models.policy import VALUE_HEAD, PolicyScorer, make_value_head
from penchant.models.scoring import Scorer
from penchant.models.sharding import whole
from penchant.objectives.rollouts import RolloutObjective
from penchant.rl.rewards.functions import require_columns
from penchant.rl.rewards.make import find_rewards
from penchant.rl.sampling.engines import require_engine
from penchant.training.held import memory_parts, print_memory
from penchant.training.kinds import Pairs
from penchant.training.rollouts import (
    make_collector,
    make_source,
    num_sampled_steps,
    of_rewards,
    probe_groups,
)

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from penchant.config.keys import RunConfig
    from penchant.data.source import Source
    from penchant.data.token_report import TokenReport
    from penchant.data.tokenise import Tokeniser
    from penchant.objectives.base import Objective, Parts
    from penchant.training.folder import RunDirectory
    from penchant.training.setup import Setup


class Prompts(Pairs):
    """Prompts, whose answers are sampled from the policy and judged by rewards."""

    def read(self, config: RunConfig, data: Any) -> Any:
        return read_prompts(data, strict=config.strict)

    def tokenise(self, tokeniser: Tokeniser, records: Any) -> tuple[Sequence[Any], TokenReport]:
        return tokeniser.prompts(records)

    def require(
        self, config: RunConfig, examples: Sequence[Any], rewards: Sequence[Any] = ()
    ) -> None:
        """Any prompt can be answered; to judge the answers may take columns beside it."""
        require_columns(rewards, [example.record for example in examples])

    def find_rewards(
        self, config: RunConfig, rewards: Sequence[Any] | None, num_processes: int
    ) -> list[Any]:
        options: Any = config.options
        require_engine(options, config.max_length, num_processes)
        require_whole_mini_batches(config, num_processes)
        return find_rewards(
            rewards or options.reward,
            options.reward_timeout,
            num_answers=options.generations,
            trust_remote_code=config.trust_remote_code,
        )

    def require_others(self, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        if config.spec.needs(config.options).divergence is not None:
            from penchant.training.teachers import require_teacher

            require_teacher(config, tokenizer)

    def groups(self, config: RunConfig, examples: Sequence[Any]) -> list[Group]:
        options: Any = config.options
        return probe_groups(examples, options.max_completion_length)

    def laid_out(self, examples: Sequence[Any]) -> list[Group]:
        return share_prompts([(e.prompt, e.completion) for e in examples])[0]

    def num_steps(self, config: RunConfig, examples: Sequence[Any], num_processes: int = 1) -> int:
        return num_sampled_steps(config, len(examples), num_processes)

    def has_critic(self, config: RunConfig) -> bool:
        return getattr(config.options, "value_model", "shared") == "copy"

    def scorer(
        self, config: RunConfig, model: Any, pad_token_id: int, critic: Any = None
    ) -> Scorer:
        """The policy, with a value head where the method has one."""
        needs = config.spec.needs(config.options)
        options: Any = config.options
        scorer = PolicyScorer(
            model,
            pad_token_id,
            value_head=make_value_head(model) if needs.values else None,
            critic=None if critic is None else Scorer(_without_head(critic), pad_token_id),
            entropy_gradient=needs.entropy_gradient,
        )
        scorer.sample_from(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
        )
        return scorer

    def complete(self, config: RunConfig, accelerator: Accelerator, setup: Setup) -> None:
        """What answers prompts and judges the answers."""
        setup.collector = make_collector(config, accelerator, setup)
        setup.notes = [of_rewards(text) for text in setup.collector.rewards.findings]
        setup.memory_held = memory_parts(config, setup)
        print_memory(setup.memory_held)

    def source(
        self, config: RunConfig, accelerator: Accelerator, setup: Setup, run: RunDirectory
    ) -> Source:
        return make_source(config, setup, run, self.budget(config, setup.scorer.plan.layout))

    def save_beside(
        self, config: RunConfig, setup: Setup, objective: Objective, folder: Path
    ) -> None:
        """Save the value head, where there is one."""
        assert isinstance(objective, RolloutObjective)
        head = setup.scorer.value_head if isinstance(setup.scorer, PolicyScorer) else None
        if head is None:
            return
        weights = {name: whole(p) for name, p in head.named_parameters()}
        if objective.parts.team.leads:
            save_file(weights, folder / VALUE_HEAD)

    def objective(self, parts: Parts, setup: Setup | None = None) -> Objective:
        assert setup is not None and setup.collector is not None
        return RolloutObjective(parts, setup.collector)


def _without_head(critic: Any) -> Any:
    """A model under a value head: its own head says nothing, so that nothing trains it."""
    head, embedding = critic.get_output_embeddings(), critic.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        head.requires_grad_(False)
    return critic


def require_whole_mini_batches(config: RunConfig, num_processes: int) -> None:
    """Refuse answers that the mini-batches of all processes do not come out even with.

    Raises:
        ConfigError: with the sizes.
    """
    options: Any = config.options
    passes = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if options.batch_size % (passes * num_processes):
        raise ConfigError(
            f"batch_size ({options.batch_size} sampled answers) must be a multiple of the "
            f"mini-batch of {num_processes} processes ({passes * num_processes}: "
            "per_device_train_batch_size x gradient_accumulation_steps x processes); change one "
            "of them"
        )
