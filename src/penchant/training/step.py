"""One optimizer step: forward and backward passes, clipping, the update. No method by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.findings import Finding
from penchant.training.metrics import StepMetrics
from penchant.training.optimizer import make_optimizer, make_scheduler

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.data.source import StepBatch
    from penchant.methods.base import LossOutput
    from penchant.models.scoring import Scorer
    from penchant.objectives.base import Objective


# Among the metrics of a step, until they are read.
NOT_FINITE = "not finite"


def say_nothing(step: int, finding: Finding) -> None:
    """For steps without a run directory; what fails is raised all the same."""


class Passes:
    """What the passes of one step have found, on the device: nobody has waited for it yet."""

    def __init__(self) -> None:
        self.sums = StepMetrics()
        self.losses: list[tuple[Sequence[Any], torch.Tensor]] = []

    def add(
        self,
        examples: Sequence[Any],
        losses: torch.Tensor,
        metrics: Mapping[str, torch.Tensor],
        num_tokens: int,
        weight: float,
    ) -> None:
        """Add one pass: losses and metrics of its examples, `[examples]` each."""
        bad = (~torch.isfinite(losses)).to(losses.dtype)
        self.sums.add({"loss": losses, NOT_FINITE: bad, **metrics}, weight)
        self.sums.count("tokens", num_tokens * weight)
        self.losses.append((examples, losses))


@dataclass
class Step:
    """Takes optimizer steps.

    Args:
        accelerator: made with this run's precision.
        scorer: the policy, planned; its parameters that require gradients are what is trained.
        objective: examples to losses.
        optimizer: of those parameters.
        scheduler: of its learning rate; None where the owner of the optimizer sets it.
        max_grad_norm: the gradient is clipped to this norm.
        veto: tells from a step's mean metrics whether its gradient is thrown away.
        say: is told what is not finite, before that is raised.

    Attributes:
        parameters: what is trained, by name.
    """

    accelerator: Accelerator
    scorer: Scorer
    objective: Objective
    optimizer: Any
    scheduler: Any = None
    max_grad_norm: float = 1.0
    veto: Callable[[Mapping[str, float]], bool] | None = None
    say: Callable[[int, Finding], None] = say_nothing

    def __post_init__(self) -> None:
        self.parameters = {n: p for n, p in self.scorer.named_parameters() if p.requires_grad}
        if self.scorer.is_sharded:  # its passes and gradients travel by themselves
            self.wrapped, self.optimizer = self.scorer, self.accelerator.prepare(self.optimizer)
        else:
            self.wrapped, self.optimizer = self.accelerator.prepare(self.scorer, self.optimizer)

    def take(
        self, batch: StepBatch[Any], meanwhile: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """One optimizer step.

        The host queues all passes and the clipping on the device, and looks at what came out of
        them once: before the weights change.

        Args:
            batch: its examples, divided.
            meanwhile: what the host does while the device computes.

        Returns:
            Means over the batch's examples, with `grad_norm` before clipping and `learning_rate`.

        Raises:
            RunFailedError: a loss or the gradient is not finite.
        """
        passes = self._accumulate(batch)
        rate = float(self.optimizer.param_groups[0]["lr"])
        norm = self._clip()
        meanwhile()
        means = passes.sums.means(self.accelerator, also=norm)
        norm_read = means.pop("also", 0.0)
        if means.pop(NOT_FINITE, 0.0):
            from penchant.training.failing import fail, not_finite

            fail("the loss", not_finite(passes.losses), batch.step, self.say)
        if self.veto is not None and self.veto(means):
            # Without a gradient the optimizer's momentum alone would still move the weights.
            means |= {"skipped": 1.0, "grad_norm": 0.0}
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()  # it has unscaled this gradient
        else:
            means["grad_norm"] = norm_read
            # A gradient scaler skips such steps by itself.
            if not math.isfinite(norm_read) and self.accelerator.scaler is None:
                from penchant.training.failing import fail

                every = [e for m, _ in batch.micro_batches for e in m]
                fail("the gradient", every, batch.step, self.say)
            self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad()
        return {**batch.metrics, **means, "learning_rate": rate}

    def _accumulate(self, batch: StepBatch[Any]) -> Passes:
        """All passes of a step; they leave the gradient of the mean loss over its examples.

        Where memory runs out and a token budget divides the step, all its passes are made once
        more, shorter: a backward pass that failed has added to some gradients and not to others.
        """
        while True:
            try:
                return self._passes(batch)
            except torch.OutOfMemoryError as error:
                if batch.budget is None:
                    raise
                from penchant.training.failing import shorter

                batch = shorter(batch, error, self.accelerator.num_processes, self.say)
            # Only here has the traceback let go of what the failed pass holds. (Accelerate's
            # optimizer clears no gradients between the passes of a step.)
            self.scorer.zero_grad()
            if self.accelerator.device.type == "cuda":
                torch.cuda.empty_cache()

    def _passes(self, batch: StepBatch[Any]) -> Passes:
        self.wrapped.train()
        passes = Passes()
        # DDP averages over processes, so that the mean over all examples needs their number.
        scale = self.accelerator.num_processes / batch.num_examples
        last = len(batch.micro_batches) - 1
        with self.accelerator.autocast():
            shared = self.objective.prepare(self.wrapped, batch)
        for i, (examples, weight) in enumerate(batch.micro_batches):
            with self._travels(i == last):
                with self.accelerator.autocast():
                    output, num_tokens = self.objective(self.wrapped, examples, shared)
                losses, metrics = self._with_router(output)
                self.accelerator.backward(losses.sum() * (weight * scale))
            passes.add(examples, losses.detach(), metrics, num_tokens, weight)
        return passes

    def _with_router(self, output: LossOutput) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Losses and metrics, with the loss of the experts' balance where there is one.

        It is one number a pass, which counts as that of each of its examples: a step's is the mean
        over its passes, weighted by their examples.
        """
        router = self.scorer.router
        balance = None if router is None else router.take()
        if router is None or balance is None:
            return output.per_example, output.metrics
        each = balance.to(output.per_example.dtype).expand_as(output.per_example)
        metrics = {**output.metrics, "router_aux_loss": each.detach()}
        return output.per_example + router.coefficient * each, metrics

    def _travels(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients travel between processes once a step, after its last pass.

        Those of sharded weights do after every pass: else each process would hold them whole.
        """
        self.accelerator.sync_gradients = last
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def _clip(self) -> torch.Tensor:
        """Clip the gradient; returns its norm before that, a number on the device."""
        parameters = list(self.parameters.values())
        if self.scorer.is_sharded:
            from penchant.models.sharding import clip

            return clip(parameters, self.max_grad_norm, self.accelerator.device)
        norm = self.accelerator.clip_grad_norm_(parameters, self.max_grad_norm)
        return torch.as_tensor(norm, device=self.accelerator.device)


def make_step(
    config: RunConfig,
    accelerator: Accelerator,
    scorer: Scorer,
    objective: Objective,
    *,
    num_steps: int,
    say: Callable[[int, Finding], None],
) -> Step:
    """The step of a run: its optimizer, its schedule over `num_steps`, its method's veto."""
    optimizer = make_optimizer(scorer, config)
    return Step(
        accelerator=accelerator,
        scorer=scorer,
        objective=objective,
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, config, num_steps),
        max_grad_norm=config.max_grad_norm,
        veto=lambda metrics: config.spec.veto(metrics, config.options),
        say=say,
    )
