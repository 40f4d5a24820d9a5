"""What a run's memory depends on, measured on its setup or read off the model's configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil
import torch

from penchant.core.machine import USABLE, memory_available_bytes, memory_peak_bytes, release_memory
from penchant.models.footprint import ACTIVATION_BYTES, Load, estimate
from penchant.models.memory import activation_bytes
from penchant.models.size import ModelSize, layer_shapes
from penchant.training.rollouts import probe_groups

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.core.machine import Machine
    from penchant.training.setup import Setup

# Threads, kernels' workspaces and modules that a CPU process takes up once training starts.
LATER_BYTES = 40e6


@dataclass(frozen=True)
class Footing:
    """Sizes, in bytes where they do not say otherwise.

    Attributes:
        weights: of the policy with heads and value model; trained: of these, what changes.
        reference, rewards: of their weights.
        process: what is in memory beside all that.
        fixed, by_token: activations of a pass, without checkpointing.
        width: inputs and outputs of the policy's linear layers: times a rank it is LoRA's weights.
        hidden, num_layers, vocabulary: of the model, in elements.
        cache_token: keys and values of one token.
        head_trained, fused_head: of the language-model head.
        half: whether the arithmetic is half precision.
        peak: of the process so far; held: now; free: what may still be allocated.
        memory: all there is.
        device: cpu or cuda.
    """

    weights: float
    trained: float
    reference: float
    rewards: float
    process: float
    fixed: float
    by_token: float
    width: int
    hidden: int
    num_layers: int
    vocabulary: int
    cache_token: float
    head_trained: bool
    fused_head: bool
    half: bool
    peak: float
    held: float
    free: float
    memory: float
    device: str

    @property
    def limit(self) -> float:
        """What the run may come to."""
        return self.held + USABLE * self.free

    def with_lora(self, rank: int, *, half: bool) -> Footing:
        """The same run with an adapter in place of all weights.

        Args:
            rank: of the adapter.
            half: keep the frozen weights in half precision.
        """
        kind = "half" if self.half else "fp32"
        adapter = 4.0 * self.width * rank
        return replace(
            self,
            weights=self.weights / (2 if half else 1) + adapter,
            trained=adapter,
            reference=0.0,
            fixed=0.0,
            by_token=self.by_token * ACTIVATION_BYTES[kind, True] / ACTIVATION_BYTES[kind, False],
            head_trained=False,
        )


def measure_footing(config: RunConfig, setup: Setup, accelerator: Accelerator) -> Footing:
    """Measure a prepared run; weights, gradients and random numbers stay as they are."""
    scorer, device = setup.scorer, accelerator.device
    groups = (
        probe_groups(setup.train_set, config.options.max_completion_length)  # type: ignore[attr-defined]
        if config.spec.samples
        else [example.group() for example in setup.train_set]
    )
    groups.sort(key=lambda group: group.num_tokens)
    held = _held_bytes(device)
    peak = memory_peak_bytes(device)
    with accelerator.autocast():
        fixed, by_token = activation_bytes(scorer, groups[len(groups) // 4])
    release_memory()
    weights = _unique_bytes(list(scorer.parameters()))
    trained = _unique_bytes([p for p in scorer.parameters() if p.requires_grad])
    reference = 0 if setup.reference_cost is None else setup.reference_cost.num_bytes
    rewards = 0
    if setup.collector is not None:
        rewards = sum(setup.collector.rewards.held_bytes().values())
    model: Any = scorer.causal_model
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    available = memory_available_bytes(device)
    return Footing(
        weights=weights,
        trained=trained,
        reference=reference,
        rewards=rewards,
        process=max(0.0, held - weights - reference - rewards)
        + (LATER_BYTES if device.type == "cpu" else 0),
        fixed=fixed,
        by_token=by_token,
        width=sum(a + b for a, b in layer_shapes(model)),
        hidden=int(text.hidden_size),
        num_layers=int(text.num_hidden_layers),
        vocabulary=int(text.vocab_size),
        cache_token=_cache_bytes(text, model.dtype.itemsize),
        head_trained=head is not None and any(p.requires_grad for p in head.parameters()),
        fused_head=scorer.plan.fused_head or head is None,
        half=accelerator.mixed_precision in ("bf16", "fp16"),
        peak=peak,
        held=held,
        free=available,
        memory=_memory_bytes(device),
        device=device.type,
    )


def footing_without_weights(config: RunConfig, size: ModelSize, machine: Machine) -> Footing:
    """Roughly the same from the model's configuration alone, before anything is loaded."""
    half_base = config.lora_r > 0 and (
        machine.precision == "bf16" if config.dtype == "auto" else config.dtype != "fp32"
    )
    needs = config.spec.needs_reference and config.spec.needs(config.options).reference
    copy = needs and (not config.lora_r or config.reference_model) and config.reference != "cache"
    load = Load(config.lora_r, "bf16" if half_base else "fp32", 0, copies=int(bool(copy)))
    none = estimate(size, load, machine.precision)
    one = estimate(size, replace(load, tokens=1), machine.precision)
    return Footing(
        weights=none.weights,
        trained=none.gradients,
        reference=none.reference,
        rewards=0.0,
        process=none.overhead,
        fixed=none.activations,
        by_token=one.activations - none.activations,
        width=size.width,
        hidden=size.hidden,
        num_layers=size.num_layers,
        vocabulary=size.vocabulary,
        cache_token=4.0 * size.hidden * size.num_layers,
        head_trained=not config.lora_r,
        fused_head=True,
        half=machine.precision != "fp32",
        peak=0.0,
        held=0.0,
        free=machine.memory_bytes,
        memory=machine.memory_bytes
        if machine.given
        else _memory_bytes(torch.device(machine.device)),
        device=machine.device,
    )


def _held_bytes(device: torch.device) -> float:
    """Of the process now; on a GPU of its tensors."""
    release_memory()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return float(psutil.Process().memory_info().rss)


def _memory_bytes(device: torch.device) -> float:
    """All that the device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return float(psutil.virtual_memory().total)


def _unique_bytes(parameters: list[torch.nn.Parameter]) -> int:
    return sum({p.data_ptr(): p.numel() * p.element_size() for p in parameters}.values())


def _cache_bytes(text: Any, itemsize: int) -> float:
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    return 2.0 * text.num_hidden_layers * kept * head_dim * itemsize
