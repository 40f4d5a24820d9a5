"""One PPO batch on the engine: answers and scores to optimizer steps and statistics."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from penchant.compat.trl.objects import name_of
from penchant.compat.trl.ppo import parts, stats
from penchant.compat.trl.ppo.given import Given, as_prompts, estimate, neutral
from penchant.data.batch import Group
from penchant.data.source import StepBatch
from penchant.methods import METHODS
from penchant.methods.kl import AdaptiveKLController, FixedKLController, KLController
from penchant.models.memory import enable_checkpointing
from penchant.objectives.base import Parts
from penchant.objectives.rollouts import RolloutObjective
from penchant.rl.rewards.make import Rewards
from penchant.rl.rollout import Collector, Rollout, make_rollouts
from penchant.rl.sampling.base import Sampling
from penchant.training.optimizer import make_optimizer
from penchant.training.step import Step

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from penchant.compat.trl.ppo.config import PPOConfig
    from penchant.compat.trl.ppo.tokens import Tokens
    from penchant.methods.ppo import PPOOptions
    from penchant.models.policy import PolicyScorer
    from penchant.models.reference import AdapterReference
    from penchant.models.reference_copy import CopyReference


class Learner:
    """Learns from the answers of a script.

    Args:
        config: its configuration.
        policy, reference: on their device.
        accelerator: of the arithmetic.
        tokenizer: of the policy.
        optimizer: None for AdamW without decay, which is Adam.

    Attributes:
        planned: how the models score.
        controller: of the penalty's coefficient.
        optimizer: as it is stepped.
    """

    def __init__(
        self,
        config: PPOConfig,
        policy: PolicyScorer,
        reference: AdapterReference | CopyReference,
        accelerator: Accelerator,
        tokenizer: Any,
        optimizer: Any,
    ) -> None:
        self.config = config
        run = config.run_config(name_of(policy.model))
        self.options: PPOOptions = run.options  # type: ignore[assignment]
        self.planned = parts.Planned(policy, reference, accelerator)
        self.controller: KLController = (
            AdaptiveKLController(config.init_kl_coef, config.adaptive_target, config.horizon)
            if config.adap_kl_ctrl
            else FixedKLController(config.init_kl_coef)
        )
        self._given, self._passes, self._batches = Given(), stats.Passes(), 0
        self._collector = Collector(
            policy=policy,
            reference=reference,
            sampler=self._given,
            sampling=Sampling(1),
            rewards=Rewards(
                [self._given], self.options.model_copy(update={"reward_normalization": "none"})
            ),
            tokenizer=tokenizer,
            full_kl=config.kl_penalty == "full",
            batch_size=config.mini_batch_size,
            autocast=accelerator.autocast,
        )
        if config.gradient_checkpointing:
            enable_checkpointing(policy)
        if optimizer is None:
            optimizer = make_optimizer(policy, run)
        method = replace(METHODS["ppo"], loss=self._passes.loss)
        objective = RolloutObjective(
            Parts(policy, reference, method, self.options), self._collector
        )
        self._step = Step(
            accelerator=accelerator,
            scorer=policy,
            objective=objective,
            optimizer=optimizer,  # its rates are set by whoever owns it, between batches
            max_grad_norm=run.max_grad_norm,
            veto=lambda metrics: run.spec.veto(metrics, run.options),
        )
        self.optimizer = self._step.optimizer
        self._policy = policy.eval()

    def learn(
        self,
        queries: Sequence[Tokens],
        answers: Sequence[Tokens],
        scores: list[float],
        mask: Tensor,
    ) -> dict[str, Any]:
        """Train on one batch.

        Args:
            queries, answers: token ids.
            scores: as they are paid.
            mask: `[N]` bool, the tokens of the answers that are learned from.

        Returns:
            Statistics under TRL's names.
        """
        self._given.answers, self._given.scores = answers, scores
        groups = [Group(q, (a,)) for q, a in zip(queries, answers, strict=True)]
        with self.planned.on(groups):
            judged = self._collector.collect(as_prompts(queries), seed=0)
            started = time.perf_counter()
            coefficient = self.controller.value
            advantages = estimate(judged.experience, mask, coefficient, self.options)
            rollouts = make_rollouts(judged, advantages)
            estimated = time.perf_counter()
            self._train(rollouts)
            trained = time.perf_counter()
        statistics = stats.of_experience(
            neutral(judged.experience, mask), mask, self.options, coefficient
        )
        statistics |= self._passes.means()
        statistics["ppo/learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        self.controller.update(statistics["objective/kl"], len(answers))
        return {
            **statistics,
            "time/ppo/forward_pass": judged.metrics["seconds/scoring"],
            "time/ppo/compute_advantages": estimated - started,
            "time/ppo/optimize_step": trained - estimated,
            "time/ppo/calc_stats": time.perf_counter() - trained,
        }

    def _train(self, rollouts: Sequence[Rollout]) -> None:
        """Epochs over shuffled mini-batches, fewer where the policy moves too far."""
        self._passes.clear()
        self._batches += 1
        limit = self.config.stopping_kl
        for epoch in range(self.config.ppo_epochs):
            for batch in self._epoch(rollouts, epoch):
                self._step.take(batch)
            if limit is not None and self._passes.seen[-1]["policy/policykl"] > 1.5 * limit:
                break
        self._policy.eval()

    def _epoch(self, rollouts: Sequence[Rollout], epoch: int) -> Iterator[StepBatch[Rollout]]:
        order = list(rollouts)
        random.Random(f"{self.config.seed} batch {self._batches} epoch {epoch}").shuffle(order)
        for start in range(0, len(order), self.config.step_size):
            chosen = order[start : start + self.config.step_size]
            size = self.config.mini_batch_size
            yield StepBatch(
                step=self._batches,
                epoch=float(epoch),
                micro_batches=[(chosen[i : i + size], 1.0) for i in range(0, len(chosen), size)],
                examples=chosen,
            )
