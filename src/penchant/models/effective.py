"""The weights of a policy with its adapter added in, as PEFT's merge has them, while both go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import TrainableTokensWrapper

from penchant.core.errors import ModelError
from penchant.models.merging import not_mergeable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from penchant.models.scoring import Scorer

WRAPPERS = (BaseTunerLayer, ModulesToSaveWrapper, TrainableTokensWrapper)


@torch.no_grad()
def effective_weights(policy: Scorer) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the model that the policy is, adapters added in, by its own name.

    Raises:
        ModelError: the adapter has no place in the weights, or it parts a head and an embedding
            that share theirs.
    """
    _require_place(policy)
    known: set[int] = set()
    for path, base, around in _modules(policy.causal_model):
        weights = {name: p.detach() for name, p in base.named_parameters(recurse=False)}
        for layer in reversed(around):
            _add(layer, weights, path)
        for name, parameter in base.named_parameters(recurse=False):
            if id(parameter) not in known:  # what is shared comes once
                known.add(id(parameter))
                yield path + name, weights[name]


def saved_buffers(policy: Scorer) -> dict[str, Tensor]:
    """What the files of the policy's model hold beside weights, such as the biases of routers."""
    return {
        path + name: buffer
        for path, base, _ in _modules(policy.causal_model)
        for name, buffer in base.named_buffers(recurse=False)
        if name not in base._non_persistent_buffers_set
    }


def _modules(module: Any, path: str = "") -> Iterator[tuple[str, Any, list[Any]]]:
    """A module and all below it: the name, the module of the base, the adapter's layers around."""
    base, around = _unwrapped(module)
    yield path, base, around
    for name, child in base.named_children():
        yield from _modules(child, f"{path}{name}.")


def _unwrapped(module: Any) -> tuple[Any, list[Any]]:
    """What an adapter is wrapped around, or has put in its place; its layers, the outermost first.

    Experts have one layer around another, one for each of their parameters.
    """
    around: list[Any] = []
    while isinstance(module, WRAPPERS):
        if isinstance(module, ModulesToSaveWrapper):
            active = module.active_adapters
            module = module.modules_to_save[active[0]] if active else module.original_module
        elif isinstance(module, TrainableTokensWrapper):
            module = module.token_adapter
        else:
            wrapped: Any = module
            around.append(wrapped)
            module = wrapped.base_layer
    return module, around


def _add(layer: Any, weights: dict[str, Tensor], path: str) -> None:
    """Change the weights of a layer's base as a merge of its active adapters would."""
    if isinstance(layer, TrainableTokensLayer):
        weights["weight"] = layer.get_merged_weights(layer.active_adapters)
        return
    name = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
    if not isinstance(layer, LoraLayer) or name not in weights:
        raise _without_place(layer, path)
    lora: Any = layer  # each class of PEFT's has a `get_delta_weight` of its own
    for adapter in lora.active_adapters:
        if adapter not in lora.scaling:  # it leaves this layer alone
            continue
        variant = lora.lora_variant.get(adapter)
        if variant is None:
            weights[name] = weights[name] + lora.get_delta_weight(adapter)
        else:
            exact = torch.promote_types(weights[name].dtype, torch.float32)
            try:
                weights[name] = variant.merge_safe(lora, adapter, weights[name].to(exact))
            except NotImplementedError as error:  # a variant that lives in passes alone
                raise _without_place(layer, path) from error
        if lora.lora_bias.get(adapter):
            if "bias" not in weights:
                raise _without_place(layer, path)
            weights["bias"] = weights["bias"] + lora.lora_B[adapter].bias * lora.scaling[adapter]


def _without_place(layer: Any, path: str) -> ModelError:
    return ModelError(
        f"what the adapter adds to {path.removesuffix('.')} ({type(layer).__name__}) has no place "
        "in the model's weights; leave the layer out of lora_target_modules, and set no lora_bias "
        "for a layer without a bias"
    )


def _require_place(policy: Scorer) -> None:
    """Refuse adapters that the model's own weights cannot take up."""
    adapted = policy.model
    if isinstance(adapted, PeftModel):
        config: Any = adapted.peft_config[adapted.active_adapter]
        if not isinstance(config, LoraConfig):
            raise not_mergeable(config.peft_type.value)
        if config.layer_replication:
            raise ModelError(
                "the adapter stands on layers that its base does not have; drop layer_replication"
            )
    _require_shared(policy.causal_model)


def _require_shared(model: PreTrainedModel) -> None:
    """Refuse an adapter that parts a head and an embedding which share their weights."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and model.config.get_text_config().tie_word_embeddings
    if not tied or not (isinstance(head, WRAPPERS) or isinstance(embedding, WRAPPERS)):
        return
    (own, around), (shared, also) = _unwrapped(head), _unwrapped(embedding)
    # PEFT lets the head follow the rows of tokens that are trained in the embedding.
    same = {_followed(layer) for layer in around} == {_followed(layer) for layer in also}
    if own.weight is not shared.weight or not same:
        raise ModelError(
            "the head and the embedding share their weights, and the adapter changes one of the "
            "two: leave lm_head and embed_tokens out of lora_target_modules and modules_to_save"
        )


def _followed(layer: Any) -> int:
    return id(getattr(layer, "tied_adapter", None) or layer)
