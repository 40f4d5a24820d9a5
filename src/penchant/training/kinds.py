"""What a run does by the kind of data that its method learns from: here pairs, which others vary.

Labels (`kind_labels.py`), scores (`kind_scores.py`) and prompts, whose answers are sampled
(`rollouts.py`), are imported where a method learns from them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from penchant.core.errors import ConfigError
from penchant.core.team import ALONE, Team
from penchant.data.read import read_pairs
from penchant.data.source import DatasetSource
from penchant.models.architecture import causal_class
from penchant.models.load import DTYPES, load_causal_model
from penchant.models.locate import is_adapter
from penchant.models.lora import add_lora
from penchant.models.memory import is_quantised
from penchant.models.scoring import Scorer
from penchant.training.accelerator import team_of

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from penchant.config.keys import RunConfig
    from penchant.data.batch import Group, Layout
    from penchant.data.budget import TokenBudget
    from penchant.data.source import Source
    from penchant.data.token_report import TokenReport
    from penchant.data.tokenise import Tokeniser
    from penchant.objectives.base import Objective, Parts
    from penchant.training.folder import RunDirectory
    from penchant.training.setup import Setup

logger = logging.getLogger("penchant")


class Pairs:
    """Two completions of one prompt, under a language model."""

    load_model: ClassVar[Callable[..., Any]] = staticmethod(load_causal_model)
    find_class: ClassVar[Callable[..., Any]] = staticmethod(causal_class)
    task_type: ClassVar[str] = "CAUSAL_LM"
    generates: ClassVar[bool] = True

    def read(self, config: RunConfig, data: Any) -> Any:
        """The records of a source, with what was left out of them."""
        return read_pairs(data, strict=config.strict)

    def tokenise(self, tokeniser: Tokeniser, records: Any) -> tuple[Sequence[Any], TokenReport]:
        """Examples of the records."""
        return tokeniser.pairs(records)

    def require(
        self, config: RunConfig, examples: Sequence[Any], rewards: Sequence[Any] = ()
    ) -> None:
        """Refuse what the method cannot learn from, or what the rewards found cannot judge.

        Raises:
            ConfigError: a record without a margin, where margins are used.
        """
        if not config.spec.needs(config.options).margins:
            return
        for example in examples:
            if example.margin is None:
                raise ConfigError(
                    f"use_margins needs a margin in every record, and {example.where} has none; "
                    "add margin (or score_chosen and score_rejected) to it, or drop use_margins"
                )

    def find_rewards(
        self, config: RunConfig, rewards: Sequence[Any] | None, num_processes: int
    ) -> list[Any]:
        """Find what judges a run's own answers, before a weight is loaded; here there are none."""
        return []

    def require_others(self, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse other models that the method names and that cannot serve, before any weight."""

    def groups(self, config: RunConfig, examples: Sequence[Any]) -> list[Group]:
        """What is laid out for each of the examples."""
        return [example.group() for example in examples]

    def laid_out(self, examples: Sequence[Any]) -> list[Group]:
        """What a micro-batch of the examples lays out."""
        return [example.group() for example in examples]

    def num_steps(self, config: RunConfig, examples: Sequence[Any], num_processes: int = 1) -> int:
        """Optimizer steps of a run."""
        return self.dataset(config, examples, team=Team(size=num_processes)).num_steps

    def load(
        self,
        config: RunConfig,
        precision: str,
        base: str,
        model: Any = None,
        device: torch.device | None = None,
        empty: bool = False,
        examples: Sequence[Any] = (),
    ) -> Any:
        """The model to train: all weights, or a frozen base with a fresh adapter.

        Args:
            config, precision: of the run.
            base: the resolved name.
            model: already loaded, in place of it.
            device: where weights go that are quantised now.
            empty: no memory for weights, of which another process hands out a part.
            examples: that are trained on, where the adapter starts from passes over some.
        """
        if model is None and empty and not is_adapter(Path(base)):
            from penchant.models.rough_sizes import empty_model

            labels = 1 if self.task_type == "SEQ_CLS" else None
            model = empty_model(
                base,
                trust_remote_code=config.trust_remote_code,
                find_class=type(self).find_class,
                num_labels=labels,
            ).eval()
        if model is None:
            model = type(self).load_model(
                base,
                dtype=DTYPES[_weights_dtype(config, precision, base)],
                trust_remote_code=config.trust_remote_code,
                quantization=quantization_of(config, precision, device),
            )
        if not config.lora_r:
            from penchant.models.quantised import require_numbers
            from penchant.models.whole_modules import train_text

            require_numbers(model, "lora_r is 0")
            return train_text(model)
        if is_quantised(model):
            from penchant.models.quantised import prepare_quantised

            prepare_quantised(model, DTYPES[precision])
        return add_lora(
            model,
            **config.adapter,
            task_type=self.task_type,
            texts=self._texts(config, examples),
            device=device,
        )

    def _texts(self, config: RunConfig, examples: Sequence[Any]) -> list[list[int]]:
        """Token ids of records that initial weights are computed from; none where none are."""
        if not config.peft:
            return []
        from penchant.config.peft import from_passes
        from penchant.models.eva import NUM_TEXTS

        if not from_passes(config.peft):
            return []

        # Of a prompt that is yet to be answered there is no more.
        groups = [example.group() for example in examples[:NUM_TEXTS]]
        return [[*g.prompt, *(g.completions[0] if g.completions else ())] for g in groups]

    def has_critic(self, config: RunConfig) -> bool:
        """Whether a second model is trained beside the policy, to estimate values."""
        return False

    def scorer(
        self, config: RunConfig, model: Any, pad_token_id: int, critic: Any = None
    ) -> Scorer:
        """What scores with the model; `critic` is the second model, where there is one."""
        return Scorer(model, pad_token_id)

    def complete(self, config: RunConfig, accelerator: Accelerator, setup: Setup) -> None:
        """Make what else a run needs once policy and reference are there."""

    def budget(self, config: RunConfig, layout: Layout) -> TokenBudget | None:
        """What fills micro-batches by tokens, where that is asked for; batches have this layout."""
        limit = config.max_tokens_per_batch
        if not isinstance(limit, int):  # auto is found once the model is there
            return None
        from penchant.data.budget import TokenBudget

        return TokenBudget(limit, self.laid_out, layout)

    def dataset(
        self,
        config: RunConfig,
        examples: Sequence[Any],
        *,
        layout: Layout = "shared",
        team: Team = ALONE,
    ) -> DatasetSource[Any]:
        """The batches of tokenised examples, for one of the processes."""
        return DatasetSource(
            examples,
            micro_batch_size=config.per_device_train_batch_size,
            accumulation=config.gradient_accumulation_steps,
            num_epochs=config.num_train_epochs,
            max_steps=config.max_steps,
            shuffle=config.shuffle,
            seed=config.seed,
            team=team,
            blocks=self.blocks(config, examples),
            budget=self.budget(config, layout),
        )

    def share(
        self, config: RunConfig, accelerator: Accelerator, setup: Setup
    ) -> DatasetSource[Any]:
        """The batches of a planned run's training data, for this process."""
        return self.dataset(
            config,
            setup.train_set,
            layout=setup.scorer.plan.layout,
            team=team_of(accelerator),
        )

    def blocks(self, config: RunConfig, examples: Sequence[Any]) -> list[list[int]] | None:
        """Indices of examples that stay together when they are shuffled; None: each alone."""
        return None

    def source(
        self, config: RunConfig, accelerator: Accelerator, setup: Setup, run: RunDirectory
    ) -> Source:
        """The batches of a run."""
        return self.share(config, accelerator, setup)

    def objective(self, parts: Parts, setup: Setup | None = None) -> Objective:
        """From examples to losses; without a setup to evaluate with."""
        from penchant.objectives.pairs import PairObjective

        return PairObjective(parts)

    def save_beside(
        self, config: RunConfig, setup: Setup, objective: Objective, folder: Path
    ) -> None:
        """Save in the model's folder what else its later use needs."""


def quantization_of(config: RunConfig, precision: str, device: torch.device | None) -> Any:
    """How a run quantises the weights that it loads; None where it does not."""
    if config.quantization == "none":
        return None
    from penchant.models.quantised import Quantization

    return Quantization(int(config.quantization[0]), DTYPES[precision], device)


def _weights_dtype(config: RunConfig, precision: str, base: str) -> str:
    if config.dtype != "auto":
        return config.dtype
    # An adapter that training starts from is merged: rounding would take back its small part.
    frozen = config.lora_r and not is_adapter(Path(base))
    return "bf16" if frozen and precision == "bf16" else "fp32"
