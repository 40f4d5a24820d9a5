"""What a run's memory depends on, measured on the loaded model and one record, not guessed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.machine import Room, release_memory
from penchant.models.architecture import text_backbone
from penchant.models.footprint import Sizes, state_bytes, update_bytes
from penchant.models.scoring import Scorer
from penchant.models.size import layer_shapes, matrix_layers

if TYPE_CHECKING:
    from penchant.data.batch import Group

logger = logging.getLogger("penchant")

# Threads, kernels' workspaces and modules that a CPU process takes up once training starts.
LATER_BYTES = 40e6


def activation_bytes(scorer: Scorer, group: Group) -> tuple[float, float]:
    """Bytes that autograd keeps: a fixed part, such as half-precision weights, and by token.

    Measured by running one group forward, alone and twice in one batch.
    """
    weights = {own_part(p).untyped_storage().data_ptr() for p in scorer.parameters()}
    kept: dict[int, Any] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage._cdata] = storage  # of sharded weights, empty once the pass is over
        # Not the tensor itself: an output that its own node holds is a cycle nobody collects.
        return tensor.detach()

    with scorer.evaluating():
        measured = []
        for copies in (1, 2):
            torch.clear_autocast_cache()
            kept.clear()
            batch = scorer.batch([group] * copies)
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
                scores = scorer.as_trained(batch)
            measured.append(
                (batch.input_ids.numel(), sum(storage.nbytes() for storage in kept.values()))
            )
            del scores
    kept.clear()
    (tokens, once), (more_tokens, twice) = measured
    per_token = (twice - once) / (more_tokens - tokens)
    return max(0.0, once - per_token * tokens), per_token


def measure_sizes(
    scorer: Scorer,
    group: Group,
    room: Room,
    *,
    reference: float,
    rewards: float,
    half: bool,
    optim: str = "adamw",
    teacher: float = 0.0,
) -> Sizes:
    """What a run's memory depends on, measured on the scorer that it trains.

    Weights, gradients and random numbers stay as they are.

    Args:
        scorer: planned, on its device.
        group: a typical record, on which activations are measured.
        room: the memory as the run finds it.
        reference, rewards, teacher: bytes of their weights, which are in memory.
        half: whether the arithmetic is half precision.
        optim: the optimizer.
    """
    fixed, by_token = activation_bytes(scorer, group)
    release_memory()
    models: list[Any] = scorer.causal_models
    model, device = models[0], scorer.device.type
    text, head = model.config.get_text_config(), model.get_output_embeddings()
    weights = 0 if scorer.offloads else weight_bytes(scorer)
    backbones = [text_backbone(one) for one in models]
    shapes = [shape for one in backbones for shape in layer_shapes(one)]
    matrices = sum(a * b for a, b in shapes)
    layers = sum(weight_bytes(layer) for one in backbones for layer in matrix_layers(one))
    # One layer's codes are numbers while it multiplies.
    unpacked = 4 * max((a * b for a, b in shapes), default=0) if is_quantised(scorer) else 0
    later = LATER_BYTES if device == "cpu" else 0
    trained = 0 if scorer.offloads else trained_bytes(scorer)
    largest = max((p.numel() for p in scorer.parameters() if p.requires_grad), default=0)
    return Sizes(
        weights=weights,
        trained=trained,
        reference=reference,
        rewards=rewards,
        process=max(0.0, room.held - weights - reference - rewards - teacher) + later,
        fixed=fixed + unpacked,
        by_token=by_token,
        width=sum(a + b for a, b in shapes),
        matrices=matrices,
        matrix_bytes=layers / max(1, matrices),
        state=held_state(scorer, optim) / max(1, trained),
        update=update_bytes(optim, largest, device),
        hidden=int(text.hidden_size),
        num_layers=int(text.num_hidden_layers) * len(models),
        vocabulary=int(text.vocab_size),
        cache_token=_cache_bytes(text, model.dtype.itemsize),
        head_trained=head is not None and any(p.requires_grad for p in head.parameters()),
        fused_head=scorer.plan.fused_head or head is None,
        half=half,
        device=device,
        whole=_gathered_bytes(scorer),
        teacher=teacher,
    )


def unique_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of all of them together, tied ones once; of sharded ones, the part that is here."""
    own = [own_part(tensor) for tensor in tensors]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in own}.values())


def own_part(tensor: Any) -> torch.Tensor:
    """What this process holds of a weight."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def trained_bytes(scorer: Scorer) -> int:
    """Of the weights that training changes, and so of their gradients."""
    return unique_bytes(p for p in scorer.parameters() if p.requires_grad)


def held_state(scorer: Scorer, optim: str) -> float:
    """Bytes of the state that an optimizer keeps of what a scorer trains."""
    ends = (
        layer
        for model in scorer.causal_models
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        if layer is not None
    )
    outer = [own_part(p) for layer in ends for p in layer.parameters() if p.requires_grad]
    every = [own_part(p) for p in scorer.parameters() if p.requires_grad]
    numbers, others = ({p.data_ptr(): p.numel() for p in some} for some in (every, outer))
    half = any(p.ndim > 1 and p.dtype.itemsize < 4 for p in every)
    count, apart = sum(numbers.values()), sum(others.values())
    return state_bytes(optim, count - apart, apart, half=half)


def is_quantised(model: torch.nn.Module) -> bool:
    """Whether a model, or one that it holds, is frozen in codes."""
    return any(
        getattr(module, "quantization_method", None) is not None for module in model.modules()
    )


def weight_bytes(model: torch.nn.Module) -> int:
    """Of a model's weights, tied ones once, with the scales of those that are codes."""
    if not is_quantised(model) and not hasattr(getattr(model, "weight", None), "quant_state"):
        return unique_bytes(model.parameters())
    from penchant.models.quantised import held_tensors

    return unique_bytes(held_tensors(model))


def _gathered_bytes(scorer: Scorer) -> int:
    """Of weights that a pass has whole, where processes hold parts of them."""
    if not scorer.is_sharded:
        return 0
    from penchant.models.sharding import whole_bytes

    return whole_bytes(scorer)


def _cache_bytes(text: Any, itemsize: int) -> float:
    """Keys and values of one token in all layers; a recurrent state alone does not grow."""
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        return 0.0
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    return 2.0 * text.num_hidden_layers * kept * head_dim * itemsize


def enable_checkpointing(scorer: Scorer) -> None:
    """Recompute activations in backward, layer by layer, in every model that is trained."""
    for model in scorer.causal_models:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    logger.info("gradient checkpointing is on: less memory, about a third more time")
