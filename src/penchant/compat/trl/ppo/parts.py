"""What `PPOTrainer` is made of: policy, reference, optimizer, and how they score."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from penchant.compat.trl.objects import disable_dropout, require_plain, whole_weights
from penchant.compat.trl.plans import planned
from penchant.compat.trl.ppo.config import PPOConfig
from penchant.compat.trl.ppo.model import AutoModelForCausalLMWithValueHead
from penchant.core.adapters import changes_base
from penchant.core.errors import ConfigError, ModelError
from penchant.models.frozen import hold_frozen
from penchant.models.policy import PolicyScorer
from penchant.models.reference import AdapterReference
from penchant.models.reference_copy import CopyReference, frozen_copy
from penchant.models.scoring import PLAIN, Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.training.reference_models import require_same_vocabulary

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.data.batch import Group

logger = logging.getLogger("penchant")

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def required(config: Any, model: Any) -> tuple[PPOConfig, AutoModelForCausalLMWithValueHead]:
    """A script's configuration and model, where they are what a trainer needs.

    Raises:
        ConfigError: one is missing or of another kind, or the configuration contradicts itself.
    """
    if not isinstance(config, PPOConfig):
        raise ConfigError(
            f"config must be a penchant.compat.trl.PPOConfig, got {type(config).__name__}"
        )
    if not isinstance(model, AutoModelForCausalLMWithValueHead):
        raise ConfigError(
            f"model must be a penchant.compat.trl.AutoModelForCausalLMWithValueHead, got "
            f"{type(model).__name__}; make one with its from_pretrained"
        )
    config.check()  # it can be changed after its construction
    return config, model


def precision_of(model: AutoModelForCausalLMWithValueHead) -> str:
    """Of the arithmetic: that of the weights as they were loaded.

    Raises:
        ModelError: half precision that this machine has not.
    """
    dtype = model.pretrained_model.dtype
    precision = PRECISIONS.get(dtype)
    if precision is None or (precision == "fp16" and not torch.cuda.is_available()):
        raise ModelError(
            f"a model in {str(dtype).removeprefix('torch.')} cannot be trained here; load it with "
            "torch_dtype=torch.bfloat16 or torch.float32"
        )
    return precision


def make_scorer(
    model: AutoModelForCausalLMWithValueHead, pad_token_id: int, device: torch.device
) -> PolicyScorer:
    """The policy; what is trained of it is in fp32, and no pass has dropout."""
    if not model.is_peft_model:
        whole_weights(model.pretrained_model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    disable_dropout(model, lora=True)
    model.to(device)
    return PolicyScorer(model.pretrained_model, pad_token_id, value_head=model.v_head.summary)


def make_reference(
    policy: PolicyScorer,
    model: AutoModelForCausalLMWithValueHead,
    ref_model: Any,
    precision: str,
) -> AdapterReference | CopyReference:
    """The reference: what is passed, the switched-off adapter, or a copy of the policy as it is.

    A model beside the policy is held in the precision of the arithmetic.

    Raises:
        UserError: a reference that cannot serve.
    """
    if ref_model is None:
        if model.is_peft_model:
            if changes_base(vars(model.pretrained_model.active_peft_config)):
                raise ConfigError(
                    "with this bias or these init_lora_weights the model without its adapter is "
                    "not the one that training starts from; pass that model as ref_model"
                )
            return AdapterReference(policy)
        copied = frozen_copy(policy)
        with copied.active() as scorer:
            hold_frozen(scorer.causal_model, "auto", precision)
        return copied
    wrapped = isinstance(ref_model, AutoModelForCausalLMWithValueHead)
    reference = ref_model.pretrained_model if wrapped else ref_model
    if reference is model.pretrained_model:
        raise ConfigError("model and ref_model are one object; drop ref_model: a copy is made")
    if not (wrapped and ref_model.is_peft_model):
        require_plain(reference, "ref_model")
    require_same_vocabulary(policy.causal_model.config, reference.config)
    if policy.causal_model.dtype == torch.float32:
        reference.float()  # rounding between the two would look like divergence
        hold_frozen(reference, "auto", precision)
    reference.to(policy.causal_model.device)
    return CopyReference(Scorer(reference, policy.pad_token_id))


class Planned:
    """Scores the fast way where that agrees with the plain one, decided on the first batch.

    Args:
        policy, reference: outside of `on` they have their own attention, and can generate.
        accelerator: of the arithmetic.
    """

    def __init__(
        self,
        policy: PolicyScorer,
        reference: AdapterReference | CopyReference,
        accelerator: Accelerator,
    ) -> None:
        self.accelerator = accelerator
        self.other: Scorer | None = None
        if isinstance(reference, CopyReference):
            with reference.active() as other:
                self.other = other
            self.other.use(PLAIN)
        self.plan = PLAIN
        self._scorers = [policy, *([] if self.other is None else [self.other])]
        self._longest = 0

    @contextmanager
    def on(self, groups: Sequence[Group]) -> Iterator[None]:
        """Score these groups as planned; they are planned for once their length is new."""
        longest = max(group.num_tokens for group in groups)
        if longest > self._longest:
            self._longest = max(1024, 1 << (longest - 1).bit_length())
            self._choose(groups[:2])
        with planned([(scorer, self.plan) for scorer in self._scorers]):
            yield

    def sample_from(self, **distribution: Any) -> None:
        """Score as this distribution from now on."""
        for scorer in self._scorers:
            scorer.sample_from(**distribution)

    def _choose(self, groups: Sequence[Group]) -> None:
        with self.accelerator.autocast():
            plans = [
                plan_scoring(scorer, groups, attention="auto", max_length=self._longest)
                for scorer in self._scorers
            ]
        # Both walk one batch, so that both must be able to.
        slowest = min(plans, key=lambda plan: (plan.packed, plan.repeated, plan.fused_head))
        self.plan = replace(slowest, fused_head=all(plan.fused_head for plan in plans))
        logger.info("%s", self.plan.describe())


def check_optimizer(optimizer: Any, lr_scheduler: Any, trained: Sequence[Any]) -> None:
    """Require that the engine can step with a script's own optimizer and schedule.

    Args:
        optimizer, lr_scheduler: None where not passed.
        trained: the parameters that require gradients.

    Raises:
        ConfigError: the optimizer is of other weights, or the schedule of another optimizer.
    """
    if lr_scheduler is not None:
        if not isinstance(lr_scheduler, torch.optim.lr_scheduler.LRScheduler):
            raise ConfigError(
                f"lr_scheduler must be a torch LRScheduler, got {type(lr_scheduler).__name__}"
            )
        if optimizer is None or lr_scheduler.optimizer is not optimizer:
            raise ConfigError(
                "lr_scheduler steers another optimizer; pass the one it was made with as optimizer"
            )
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer must be a torch Optimizer, got {type(optimizer).__name__}; drop it"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if missing := sum(id(p) not in held for p in trained):
        raise ConfigError(
            f"optimizer leaves out {missing} of {len(trained)} weights that require gradients; "
            "make it of model.parameters(), or freeze those with requires_grad_(False)"
        )
