"""What a run does whose method learns from single completions, each found good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penchant.core.errors import ConfigError
from penchant.data.read_labels import read_labels
from penchant.data.shared_prompts import share_prompts
from penchant.objectives.labels import LabelObjective, blocks_of
from penchant.training.kinds import Pairs

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.data.batch import Group
    from penchant.data.token_report import TokenReport
    from penchant.data.tokenise import Tokeniser
    from penchant.objectives.base import Objective, Parts
    from penchant.training.setup import Setup


class Labels(Pairs):
    """Single completions, each found good or bad."""

    def read(self, config: RunConfig, data: Any) -> Any:
        return read_labels(data, strict=config.strict, unpair=config.unpair)

    def tokenise(self, tokeniser: Tokeniser, records: Any) -> tuple[Sequence[Any], TokenReport]:
        return tokeniser.labels(records)

    def require(
        self, config: RunConfig, examples: Sequence[Any], rewards: Sequence[Any] = ()
    ) -> None:
        """Refuse what no mismatched completion can be found for.

        Raises:
            ConfigError: steps of one record, or one prompt in all records.
        """
        if not config.spec.needs(config.options).mismatches:
            return
        if config.per_device_train_batch_size * config.gradient_accumulation_steps == 1:
            raise ConfigError(
                f"{config.method} estimates its KL term from the other completions of a step, and "
                "a step of one has none: the term would equal the reward it is compared with; "
                "raise per_device_train_batch_size or gradient_accumulation_steps"
            )
        if all(example.prompt == examples[0].prompt for example in examples):
            raise ConfigError(
                f"{config.method} estimates its KL term from completions of other prompts, but "
                "all records have the same prompt; add records with other prompts"
            )

    def laid_out(self, examples: Sequence[Any]) -> list[Group]:
        return share_prompts([(e.prompt, e.completion) for e in examples])[0]

    def blocks(self, config: RunConfig, examples: Sequence[Any]) -> list[list[int]] | None:
        return blocks_of(examples) if config.shuffle else None

    def objective(self, parts: Parts, setup: Setup | None = None) -> Objective:
        return LabelObjective(parts, () if setup is None else setup.train_set)
