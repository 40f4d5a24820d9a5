"""An adapter as part of the weights that it stands on: merged, or added in while it goes on."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from penchant.core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from penchant.models.scoring import Scorer

logger = logging.getLogger("penchant")


def untie(model: PreTrainedModel) -> None:
    """Give the head weights of its own where an adapter changes it or the embedding, but not both.

    Merging an adapter into weights that two layers share would change both layers.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    wrapped = (BaseTunerLayer, ModulesToSaveWrapper)
    if head is None or (not isinstance(embedding, wrapped) and not isinstance(head, wrapped)):
        return
    own, shared = _base_layer(head), _base_layer(embedding)
    if own.weight is shared.weight:
        own.weight = nn.Parameter(own.weight.detach().clone(), own.weight.requires_grad)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _base_layer(module: Any) -> Any:
    if isinstance(module, ModulesToSaveWrapper):
        return module.original_module
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


# Of a merged model against its adapter: the largest tolerated mean difference of the logits.
MERGED_IN_FP32, MERGED_IN_HALF = 1e-3, 0.05
NUM_COMPARED = 32
# Names of what PEFT trains whole, or by rows, beside the weights that were there.
OTHER_WEIGHTS = re.compile(r"\.(original_module|modules_to_save|token_adapter)\.")
# What is in the name of a parameter of a module that adapters stand around.
WRAPPED = re.compile(r"(\.base_layer)+\.")


@torch.no_grad()
def merge_adapter(
    model: Any, records: Sequence[Sequence[int]] = (), dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The model with its adapter added to its weights; codes become numbers, on the CPU.

    What both say of some tokens from the whole vocabulary is compared, and of `records`, a few
    texts as token ids: of these the difference in log-probs is said.

    Args:
        model: with an adapter; it is used up unless its base is quantised.
        records: texts to compare on.
        dtype: of the result; default: as it is.

    Raises:
        ModelError: the adapter is of a kind that cannot be merged, or the result differs.
    """
    if not hasattr(model.base_model, "merge_and_unload"):
        raise not_mergeable(model.peft_config[model.active_adapter].peft_type.value)
    model.eval()
    base = model.get_base_model()
    dtype = dtype or base.dtype
    vocabulary = base.get_input_embeddings().weight.shape[0]
    spread = (torch.arange(NUM_COMPARED) * vocabulary // NUM_COMPARED).tolist()
    texts = [torch.tensor([[*ids]], device=base.device) for ids in (spread, *records)]
    before = [model(input_ids=ids).logits.float() for ids in texts]
    if getattr(base, "quantization_method", None) is not None:
        from penchant.models.quantised import dequantised

        model = dequantised(model)
    untie(model.get_base_model())
    merged = model.merge_and_unload()
    arithmetic = merged.dtype  # that of the weights alone is compared, whatever they round to
    merged.to(dtype).to(arithmetic)
    after = [merged(input_ids=ids.to(merged.device)).logits.float() for ids in texts]
    after = [found.to(expected.device) for found, expected in zip(after, before, strict=True)]
    _require_same(after, before, MERGED_IN_FP32 if dtype.itemsize >= 4 else MERGED_IN_HALF)
    if records:
        _say_difference(after[1:], before[1:], texts[1:])
    return merged.to(dtype)


def _require_same(after: Sequence[Tensor], before: Sequence[Tensor], limit: float) -> None:
    for found, expected in zip(after, before, strict=True):
        difference = (found - expected).abs().mean()
        if not difference <= limit * expected.abs().mean().clamp(min=1.0):  # also for NaN
            raise ModelError(
                f"the merged model's logits differ from the adapter's by {difference:.2g} on "
                "average; use the adapter as it is"
            )


def _say_difference(
    after: Sequence[Tensor], before: Sequence[Tensor], texts: Sequence[Tensor]
) -> None:
    """Log how far a merged model is from its adapter on texts `[1, T]`, by logits or scores."""
    if before[0].ndim < 3:  # a reward model's
        scores = torch.stack([(a - b).abs().max() for a, b in zip(after, before, strict=True)])
        logger.info("merged: scores differ from the adapter's by at most %.2g", scores.max())
        return
    logprobs = [
        torch.cat(
            [
                logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
                for logits, ids in zip(side, texts, strict=True)
            ]
        )
        for side in (after, before)
    ]  # of each [tokens, 1]
    logger.info(
        "merged: log-probs differ from the adapter's by %.2g nats per token (mean over %d tokens)",
        (logprobs[0] - logprobs[1]).abs().mean(),
        len(logprobs[0]),
    )


def not_mergeable(kind: str) -> ModelError:
    """That an adapter of a kind, such as PROMPT_TUNING, has no place in the weights."""
    return ModelError(
        f"the adapter is of type {kind}, which cannot be added to the weights; give a LoRA "
        "adapter, or the model it stands on"
    )


def effective_weights(policy: Scorer) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the model that the policy is, adapters added in, by its own name."""
    model = policy.causal_model
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.get_text_config().tie_word_embeddings and (
        isinstance(head, LoraLayer) or isinstance(embedding, LoraLayer)
    ):
        raise ModelError(
            "the head and the embedding share their weights, and the adapter changes one of the "
            "two: leave lm_head and embed_tokens out of lora_target_modules"
        )
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        if OTHER_WEIGHTS.search(name):
            raise ModelError(
                f"{name}: what PEFT trains whole, or by rows, cannot be handed over with the "
                "weights that an adapter changes; drop modules_to_save and trainable_token_indices "
                "from peft, or set generation to cached"
            )
        path, _, own = name.rpartition(".")
        weight = parameter.detach()
        # Adapters of several parameters of one module stand around each other.
        while path.endswith(".base_layer"):
            path = path.removesuffix(".base_layer")
            weight = _added(layers[path], own, weight)
        yield WRAPPED.sub(".", name), weight


def _added(layer: Any, name: str, weight: Tensor) -> Tensor:
    """A parameter of the module under a LoRA layer, with what its active adapters make of it."""
    for one in layer.active_adapters:
        if name == "bias":
            bias = layer.lora_B[one].bias
            weight = weight if bias is None else weight + bias * layer.scaling[one]
        elif name == getattr(layer, "parameter_name", name):
            variant = layer.lora_variant.get(one)
            weight = (
                weight + layer.get_delta_weight(one)
                if variant is None
                else variant.merge_safe(layer, one, weight.clone())
            )
    return weight
