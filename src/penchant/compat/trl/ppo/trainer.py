"""TRL's `PPOTrainer` of 2024 on Penchant's engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penchant.compat.trl.arguments import Refusals
from penchant.compat.trl.objects import padded
from penchant.compat.trl.ppo import generation, given, parts, tokens
from penchant.compat.trl.ppo.config import PPOConfig
from penchant.compat.trl.ppo.model import AutoModelForCausalLMWithValueHead
from penchant.compat.trl.ppo.stats import cautions, for_tracker, of_lengths
from penchant.compat.trl.tables import Standing
from penchant.core.errors import ConfigError
from penchant.core.machine import out_of_memory_explained
from penchant.models.load import end_token_ids

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.methods.kl import KLController

logger = logging.getLogger("penchant")

TRAINER_STANDING: Standing = {
    "num_shared_layers": ((None,), "the reference shares no layers; pass peft_config to the model"),
    "training_data_collator": ((None,), "batches are laid out by the engine; drop it"),
}
# What a data set may have for `step` and the trackers, beside the model's own inputs.
COLUMNS = ("input_ids", "attention_mask", "past_key_values", "label", "query", "response")


class PPOTrainer:
    """PPO whose loop is the script's: `generate`, score, `step`.

    Args:
        config: the configuration.
        model: with a value head; trained in place.
        ref_model: a model, with a value head or without. None: the adapter switched off where
            there is one, else a frozen copy.
        tokenizer: of the model; without a pad token its EOS token is taken.
        dataset, data_collator: for `dataloader`.
        optimizer: in place of Adam at `config.learning_rate`; lr_scheduler: its, stepped once a
            batch.

    Attributes:
        model, tokenizer, config: as passed.
        ref_model: the reference's transformers model; None where it is the policy's own.
        accelerator, optimizer: of the engine.
        dataloader: shuffled whole batches of `dataset`; None without one.
        current_step: batches that were logged.

    Raises:
        UserError: an argument that cannot have its effect, or a model that cannot be trained.
    """

    def __init__(
        self,
        config: PPOConfig | None = None,
        model: AutoModelForCausalLMWithValueHead | None = None,
        ref_model: Any = None,
        tokenizer: Any = None,
        dataset: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable[[Any], Any] | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: Any = None,
        training_data_collator: Any = None,
    ) -> None:
        from accelerate.utils import set_seed

        from penchant.compat.trl.ppo.learner import Learner
        from penchant.core.screen import setup_logging
        from penchant.training.accelerator import make_accelerator

        setup_logging()
        refusals = Refusals()
        refusals.settle(
            {
                "num_shared_layers": num_shared_layers,
                "training_data_collator": training_data_collator,
            },
            TRAINER_STANDING,
            (),
        )
        refusals.raise_all()
        self.config, self.model = parts.required(config, model)
        if unheeded := self.config.unheeded():
            logger.info("%s", unheeded)
        self.tokenizer: Any = padded(tokenizer)
        if self.tokenizer is None:
            raise ConfigError("a trainer needs the model's tokenizer; set tokenizer")
        trained = [p for p in self.model.parameters() if p.requires_grad]
        parts.check_optimizer(optimizer, lr_scheduler, trained)
        set_seed(self.config.seed)
        precision = parts.precision_of(self.model)
        self.accelerator = make_accelerator(
            precision,
            trackers=[self.config.log_with] if self.config.log_with else [],
            folder=self.config.tracker_folder,
        )
        if self.accelerator.num_processes > 1:
            raise ConfigError(
                "a script that samples by itself runs in one process; penchant train ppo trains "
                "in several"
            )
        self._track()
        self.policy = parts.make_scorer(
            self.model, int(self.tokenizer.pad_token_id), self.accelerator.device
        )
        self.reference = parts.make_reference(self.policy, self.model, ref_model, precision)
        self._learner = Learner(
            self.config, self.policy, self.reference, self.accelerator, self.tokenizer, optimizer
        )
        self.optimizer, self.lr_scheduler = self._learner.optimizer, lr_scheduler
        other = self._learner.planned.other
        self.ref_model = None if other is None else other.model
        self.dataset, self.dataloader = dataset, None
        if dataset is not None:
            self.dataloader = self.prepare_dataloader(dataset, data_collator)
        self.current_step = 0
        self._scaling = given.ScoreScaling(self.config)
        self._said: set[str] = set()

    @property
    def kl_ctl(self) -> KLController:
        """Holds the coefficient of the penalty, in `value`."""
        return self._learner.controller

    def _track(self) -> None:
        if self.config.log_with:
            values = self.config.to_dict().items()
            self.accelerator.init_trackers(
                self.config.tracker_project_name,
                config={k: v for k, v in values if isinstance(v, int | float | str)},
                init_kwargs=self.config.tracker_kwargs,
            )

    def prepare_dataloader(self, dataset: Any, data_collator: Any = None) -> Any:
        """Whole batches of `batch_size` rows, shuffled.

        Args:
            dataset: of torch or a `datasets.Dataset`; of the latter only columns for the model,
                `label`, `query` and `response` are kept, unless `remove_unused_columns` is False.
            data_collator: rows to a batch.
        """
        from datasets import Dataset

        if isinstance(dataset, Dataset) and self.config.remove_unused_columns:
            dataset = dataset.remove_columns([c for c in dataset.column_names if c not in COLUMNS])
        loader: Any = torch.utils.data.DataLoader(
            dataset,
            batch_size=self.config.batch_size,
            collate_fn=data_collator,
            shuffle=True,
            drop_last=True,
        )
        return self.accelerator.prepare(loader)

    def generate(
        self,
        query_tensor: Any,
        length_sampler: Callable[[], int] | None = None,
        batch_size: int = 32,
        return_prompt: bool = False,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Let the model answer; the next `step` takes log-probs under the same distribution.

        Args:
            query_tensor: `[T]`, or several: a list of them, or a padded tensor `[B, T]`.
            length_sampler: draws `max_new_tokens`, once for every `batch_size` queries.
            batch_size: answers that are drawn side by side.
            return_prompt: put the queries in front, as TRL did by default; `step` wants responses
                without.
            generate_ref_response: return the reference's answers too, as a second result.
            generation_kwargs: of transformers' `generate`.

        Returns:
            Responses in the form of the queries: `[1, T]` of one, a list of tensors of a list, a
            tensor padded on the right of a padded one.

        Raises:
            ConfigError: queries of another form, or an argument that cannot have its effect.
        """
        one = isinstance(query_tensor, torch.Tensor) and query_tensor.dim() == 1
        queries = query_tensor.unsqueeze(0) if one else query_tensor
        prompts = tokens.query_ids(queries, None if one else self.tokenizer.pad_token_id)
        ways: list[AbstractContextManager[Any]] = [nullcontext(self.policy)]
        if generate_ref_response:
            ways.append(self.reference.active())
        answers = []
        for way in ways:
            remedy = "set a lower batch_size or max_new_tokens of generate"
            explained = out_of_memory_explained("queries were answered", remedy)
            with way as scorer, self.accelerator.autocast(), explained:
                rows, request = generation.answer(
                    scorer,
                    prompts,
                    generation_kwargs,
                    length_sampler=length_sampler,
                    end_token_ids=self._end_token_ids,
                    batch_size=batch_size,
                )
            answers.append(rows)
        self._say(*request.cautions)
        self._learner.planned.sample_from(**request.distribution)
        pad, device = self.policy.pad_token_id, self.accelerator.device
        shaped = [
            tokens.like(queries, prompts, rows, return_prompt, pad, device) for rows in answers
        ]
        return (shaped[0], shaped[1]) if generate_ref_response else shaped[0]

    @property
    def _end_token_ids(self) -> list[int]:
        eos = self.tokenizer.eos_token_id
        known = {*end_token_ids(self.model.pretrained_model), *([] if eos is None else [eos])}
        return sorted(known)

    def _say(self, *texts: str) -> None:
        """Warn once of each."""
        for text in texts:
            if text not in self._said:
                self._said.add(text)
                logger.warning("%s", text)

    def step(
        self,
        queries: list[Tensor] | Tensor,
        responses: list[Tensor] | Tensor,
        scores: Any,
        response_masks: Any = None,
    ) -> dict[str, Any]:
        """Learn from a batch of answers.

        Args:
            queries: a list of `config.batch_size` tensors `[T]`, or one that is padded on either
                side, `[batch_size, T]`.
            responses: likewise, without the queries; one tensor is padded on the right.
            scores: one number each, what the answer is worth.
            response_masks: 0 at the tokens of a response that the model did not write.

        Returns:
            The statistics of the step, under TRL's names.

        Raises:
            ConfigError: another number of them, an empty one, or a score that is not finite.
            TrainingError: a loss or gradient that is not finite.
        """
        started = time.perf_counter()
        pad = self.policy.pad_token_id
        prompts = tokens.query_ids(queries, pad)
        answers = tokens.response_ids(responses, pad, self._end_token_ids)
        columns = {"queries": prompts, "responses": answers, "scores": scores}
        tokens.require_batch(columns, self.config.batch_size)
        masks = tokens.token_masks(response_masks, answers)
        if masks is not None and self.config.whiten_rewards:
            raise ConfigError("whiten_rewards cannot be had with response_masks; drop one of them")
        lengths = {**of_lengths("queries", prompts), **of_lengths("responses", answers)}
        answers, mask = tokens.without_tails(answers, masks)
        paid = self._scaling(tokens.score_values(scores))
        remedy = (
            "lower mini_batch_size, raise gradient_accumulation_steps to match, lower batch_size, "
            "or set gradient_checkpointing=True"
        )
        with out_of_memory_explained("a batch was learned from", remedy):
            statistics = self._learner.learn(prompts, answers, paid, mask)
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        if self.config.empties_cache:
            torch.cuda.empty_cache()
        self._say(*cautions(statistics))
        return {**statistics, **lengths, "time/ppo/total": time.perf_counter() - started}

    def log_stats(
        self,
        stats: Mapping[str, Any],
        batch: Mapping[str, Any],
        rewards: Any,
        columns_to_log: Iterable[str] = ("query", "response"),
    ) -> None:
        """Send a step's statistics to the tracker that `log_with` names.

        Args:
            stats: as `step` returned them.
            batch: with the columns to show, which only wandb does.
            rewards: one number an answer.
            columns_to_log: of the batch.

        Raises:
            ConfigError: a column that the batch has not.
        """
        self.current_step += 1
        if self.config.log_with is None:
            return
        values = for_tracker(
            self.config.log_with, stats, batch, tokens.score_values(rewards), list(columns_to_log)
        )
        self.accelerator.log(values, step=self.current_step)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the model or its adapter, the value head and the tokenizer."""
        self.model.save_pretrained(save_directory)
        self.tokenizer.save_pretrained(str(save_directory))
