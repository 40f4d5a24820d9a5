"""A reward model that is an adapter on the policy's own backbone, and adds only its size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftConfig, PeftType
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import nn

from penchant.core.errors import ModelError
from penchant.models import attention
from penchant.models.locate import is_adapter, resolve
from penchant.models.lora import fuse_lora
from penchant.models.reward_scorer import RewardScorer
from penchant.models.scoring import causal_model
from penchant.rl.rewards.models import ModelContext, ModelReward
from penchant.rl.rewards.shaping import Statistics
from penchant.rl.rewards.tokens import RewardTokens

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

    from penchant.data.batch import TokenBatch
    from penchant.models.vocabulary import Also

ADAPTER = "reward"


class SharedAdapterReward(ModelReward):
    """A reward adapter that borrows the policy's frozen base while it scores.

    Its LoRA weights are loaded into the policy under a name of their own, frozen; its head is kept
    apart. Outside of a call the policy is as it was: active adapter, what trains, which modules
    are in training mode, how attention runs. Save the policy with `selected_adapters`, or PEFT
    writes this adapter beside it.

    Args:
        name: by which metrics and messages call it.
        folder: the resolved folder of the adapter.
        tokens: encodes samples.
        context: of the run, with a policy.
        statistics: of the model's training, where they are known.

    Raises:
        ModelError: the adapter's weights do not fit the policy's model.
    """

    def __init__(
        self,
        name: str,
        folder: str,
        tokens: RewardTokens,
        context: ModelContext,
        statistics: Statistics | None = None,
        *,
        pad_token_id: int,
    ) -> None:
        assert context.policy is not None
        self.policy = context.policy
        self.adapter = _free_name(self.policy)
        with _restored(self.policy):
            head = _load(self.policy, folder, self.adapter)
            scorer = _SharedScorer(self.policy, pad_token_id, head)
        super().__init__(name, scorer, tokens, context, statistics)

    def ready(self) -> AbstractContextManager[None]:
        """The policy with this adapter in place of its own."""
        return self._borrowed()

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        with self.context.whole(), _restored(self.policy):
            self.policy.set_adapter(self.adapter, inference_mode=True)
            self.policy.requires_grad_(False)
            self.policy.eval()
            self.scorer.use(self.scorer.plan)
            yield

    def held_bytes(self) -> int:
        """Memory of the adapter and its head: all that is not the policy's."""
        own = [p for n, p in self.policy.named_parameters() if f".{self.adapter}." in n]
        head: Any = self.scorer.score
        return sum(p.numel() * p.element_size() for p in [*own, *head.parameters()])


class _SharedScorer(RewardScorer):
    """The policy's hidden states under a head that is not part of the policy."""

    def __init__(self, policy: PeftModel, pad_token_id: int, score: nn.Linear) -> None:
        super().__init__(policy, pad_token_id)
        self.score = score

    def forward(self, batch: TokenBatch, also: Also = None) -> Tensor:
        """`[completions]`: the scores, in fp32 or better."""
        assert also is None, "a reward model has no probabilities"
        hidden = self.hidden_states(batch)[batch.ends]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        # One row a completion costs nothing: it need not be rounded as the products are.
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.score.bias is None else self.score.bias.to(dtype)
            weight = self.score.weight.to(dtype)
            return nn.functional.linear(hidden.to(dtype), weight, bias).squeeze(-1)


def why_apart(folder: str, context: ModelContext) -> str | None:
    """Why a reward model cannot live on the policy's weights, or None where it can.

    Args:
        folder: the resolved name of the reward model.
        context: of the run.
    """
    if context.policy is None or not is_adapter(Path(folder)):
        return "it is not an adapter beside an adapter"
    config = PeftConfig.from_pretrained(folder)
    if config.peft_type != PeftType.LORA:
        return f"it is a {config.peft_type} adapter, and only LoRA can share"
    base = resolve(str(config.base_model_name_or_path))
    if context.base is None or Path(base).resolve() != Path(context.base).resolve():
        return f"it was trained on {base}, and the policy on {context.base}"
    if not any(".score." in key for key in load_peft_weights(folder, device="cpu")):
        return "its file holds no score head"
    return None


def _free_name(policy: PeftModel) -> str:
    taken, number = policy.peft_config, 2
    name = ADAPTER
    while name in taken:
        name, number = f"{ADAPTER}-{number}", number + 1
    return name


def _load(policy: PeftModel, folder: str, adapter: str) -> nn.Linear:
    """Put the adapter's weights into the policy, and return its head."""
    adapter_config = PeftConfig.from_pretrained(folder)
    assert isinstance(adapter_config, LoraConfig)
    # The head is no part of a language model, so PEFT must not look for it there.
    config = dataclasses.replace(adapter_config, task_type="CAUSAL_LM", modules_to_save=None)
    config.inference_mode = True
    weights = load_peft_weights(folder, device="cpu")
    head = {key: weights.pop(key) for key in list(weights) if ".score." in key}
    policy.add_adapter(adapter, config)
    fuse_lora(policy)
    result: Any = set_peft_model_state_dict(policy, weights, adapter_name=adapter)
    missing = [key for key in result.missing_keys if f".{adapter}." in key]
    if missing or result.unexpected_keys:
        policy.delete_adapter(adapter)
        wrong = [*missing, *result.unexpected_keys]
        raise ModelError(
            f"the adapter in {folder} does not fit the policy's model ({len(wrong)} weights, the "
            f"first {wrong[0]}); it must have been trained on the same base"
        )
    return _linear(head).to(causal_model(policy).device)


def _linear(weights: dict[str, Tensor]) -> nn.Linear:
    weight = next(value for key, value in weights.items() if key.endswith(".weight"))
    bias = next((value for key, value in weights.items() if key.endswith(".bias")), None)
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    head.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return head.requires_grad_(False)


@contextmanager
def _restored(policy: PeftModel) -> Iterator[None]:
    """Leave the policy afterwards as it was, whatever is done to it meanwhile."""
    assert not any(_disabled(m) for m in policy.modules()), "the policy's adapter is switched off"
    model = causal_model(policy)
    active, way = policy.active_adapter, model.config._attn_implementation
    trains = [(p, p.requires_grad) for p in policy.parameters()]
    modes = [(module, module.training) for module in policy.modules()]
    if way == attention.NAME:
        # A scorer takes the way it finds for the model's own, which this one is not.
        model.set_attn_implementation(model.get_correct_attn_implementation(None))
    try:
        yield
    finally:
        policy.set_adapter(active)
        for parameter, trained in trains:
            parameter.requires_grad_(trained)
        for module, training in modes:
            module.training = training
        if model.config._attn_implementation != way:
            model.set_attn_implementation(way)


def _disabled(module: nn.Module) -> bool:
    return bool(getattr(module, "_disable_adapters", False))
