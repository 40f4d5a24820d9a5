"""Changes of a run's configuration that take less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from penchant.config.weights import ROUNDING
from penchant.core.screen import gibibytes
from penchant.models.footprint import STATE_BYTES, Load, Sizes, footprint
from penchant.models.ways import in_bf16, quantised, with_lora
from penchant.training.sharded import why_indivisible

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig

LORA_R = 16


@dataclass(frozen=True)
class Proposal:
    """A change of the configuration that takes less memory.

    Attributes:
        keys: to set, with their values.
        peak_bytes: predicted with them.
        fits: whether that can be had.
    """

    keys: Mapping[str, Any]
    peak_bytes: float
    fits: bool

    def describe(self) -> str:
        """The keys and what they bring, for people."""
        keys = ", ".join(f"{key}: {value}" for key, value in self.keys.items())
        return f"{keys} ({gibibytes(self.peak_bytes)}{'' if self.fits else ', too much too'})"


@dataclass(frozen=True)
class Way:
    """A run that takes less memory.

    Attributes:
        keys: to set for it.
        sizes: of its models.
        checkpointing: whether activations are recomputed.
    """

    keys: Mapping[str, Any]
    sizes: Sizes
    checkpointing: bool


def propose(
    config: RunConfig,
    sizes: Sizes,
    load_of: Callable[[RunConfig, bool], Load],
    *,
    checkpointing: bool,
    limit: float,
    num_processes: int = 1,
) -> list[Proposal]:
    """Changes that lower the peak; the gentlest that fits is first.

    Args:
        config: of the run; sizes: of its models.
        load_of: (configuration, checkpointing) to the passes of a run.
        checkpointing: whether activations are recomputed as it is.
        limit: bytes that can be had.
        num_processes: of the run.
    """
    now = footprint(sizes, load_of(config, checkpointing)).peak
    proposals = []
    for way in _ways(config, Way({}, sizes, checkpointing), num_processes):
        changed = config.model_copy(update=dict(way.keys))
        load = load_of(changed, way.checkpointing)
        # Lengths of what is tokenised are known; a shorter limit can only cut them in proportion.
        share = changed.max_length / config.max_length
        load = replace(
            load, tokens=round(load.tokens * share), predicted=round(load.predicted * share)
        )
        peak = footprint(way.sizes, load).peak
        if peak < now:
            proposals.append(Proposal(way.keys, peak, peak <= limit))
    fitting = [proposal for proposal in proposals if proposal.fits]
    others = [proposal for proposal in proposals if not proposal.fits]
    return fitting + sorted(others, key=lambda proposal: proposal.peak_bytes)


def _ways(config: RunConfig, now: Way, num_processes: int) -> Iterator[Way]:
    """Changes that take less memory: each alone, then together, the gentlest first."""
    together = now
    for step in (_smaller_batch, _lighter_reference, _lighter_optimizer, _checkpointed,
                 _half_weights, _with_lora, _half_base, _quantised, _shorter):  # fmt: skip
        alone, more = (step(config, way) for way in (now, together))
        if alone is not None and _can_be_shared(config, alone, num_processes):
            yield alone
        if more is not None and _can_be_shared(config, more, num_processes):
            if together.keys and more.keys != (alone.keys if alone else None):
                yield more
            together = more


def _can_be_shared(config: RunConfig, way: Way, num_processes: int) -> bool:
    """Whether the processes of the run can train in this way."""
    changed = config.model_copy(update=dict(way.keys))
    if num_processes == 1:
        return True
    if changed.rounds_stochastically:  # each of them would round otherwise
        return False
    return changed.sharding not in ("full", "hybrid") or why_indivisible(changed) is None


def _smaller_batch(config: RunConfig, way: Way) -> Way | None:
    size, passes = config.per_device_train_batch_size, config.gradient_accumulation_steps
    budget = config.max_tokens_per_batch
    if budget == "auto":
        return None
    if budget is not None:  # a shorter one could only part what is together
        alone = {"max_tokens_per_batch": config.max_length}
        return replace(way, keys={**way.keys, **alone}) if budget > config.max_length else None
    if size == 1:
        return None
    keys = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": size * passes}
    return replace(way, keys={**way.keys, **keys})


def _lighter_reference(config: RunConfig, way: Way) -> Way | None:
    if not way.sizes.reference or config.sync_ref_model or config.reference == "cache":
        return None
    if config.lora_r and not config.reference_model:
        kind, left = "adapter", 0.0
    elif config.cacheable:
        kind, left = "cache", 0.0
    elif config.reference in ("auto", "copy"):
        kind, left = "copy-8bit", way.sizes.reference / (2 if way.sizes.half else 4)
    else:
        return None
    sizes = replace(way.sizes, reference=left)
    return replace(way, keys={**way.keys, "reference": kind}, sizes=sizes)


def _lighter_optimizer(config: RunConfig, way: Way) -> Way | None:
    """Moments in 8 bits; of an adapter they are small anyway."""
    if config.lora_r or config.optim != "adamw":
        return None
    share = STATE_BYTES["adamw_8bit"][0] / STATE_BYTES["adamw"][0]
    share *= 2 if config.rounds_stochastically else 1
    sizes = replace(way.sizes, state=way.sizes.state * share)
    return replace(way, keys={**way.keys, "optim": "adamw_8bit"}, sizes=sizes)


def _half_weights(config: RunConfig, way: Way) -> Way | None:
    """All weights in bf16, where the arithmetic is in it: torchao rounds what changes them."""
    optim = way.keys.get("optim", config.optim)
    if config.lora_r or config.dtype != "auto" or optim not in ROUNDING or config.sync_ref_model:
        return None
    if not way.sizes.half or way.sizes.device == "cpu" or config.precision == "fp16":
        return None
    keys = {**way.keys, "dtype": "bf16", "precision": "bf16"}
    return replace(way, keys=keys, sizes=in_bf16(way.sizes, optim))


def _checkpointed(_: RunConfig, way: Way) -> Way | None:
    if way.checkpointing:
        return None
    return replace(way, keys={**way.keys, "gradient_checkpointing": "on"}, checkpointing=True)


def _with_lora(config: RunConfig, way: Way) -> Way | None:
    if config.lora_r or config.sync_ref_model:
        return None
    full = ("reference", "optim", "dtype", "precision")
    keys = {k: v for k, v in way.keys.items() if k not in full}
    sizes = replace(with_lora(way.sizes, LORA_R), state=STATE_BYTES[config.optim][0] / 4)
    if config.reference_model:
        sizes = replace(sizes, reference=way.sizes.reference)
        keys = dict(way.keys)
    elif config.reference in ("copy", "copy-8bit", "copy-4bit", "cache"):
        keys["reference"] = "adapter"
    return replace(way, keys={**keys, "lora_r": LORA_R}, sizes=sizes)


def _half_base(config: RunConfig, way: Way) -> Way | None:
    if config.lora_r or config.sync_ref_model or way.sizes.half or "lora_r" not in way.keys:
        return None
    frozen = (way.sizes.weights - way.sizes.trained) / 2
    sizes = replace(way.sizes, weights=frozen + way.sizes.trained, matrix_bytes=2.0)
    return replace(way, keys={**way.keys, "dtype": "bf16"}, sizes=sizes)


def _quantised(config: RunConfig, way: Way) -> Way | None:
    if config.sync_ref_model or not (config.lora_r or "lora_r" in way.keys):
        return None
    if way.sizes.matrix_bytes < 2:  # they are codes already
        return None
    keys = {k: v for k, v in way.keys.items() if k != "dtype"}  # the rest is held in fp32
    sizes = quantised(way.sizes, "4bit")
    return replace(way, keys={**keys, "quantization": "4bit"}, sizes=sizes)


def _shorter(config: RunConfig, way: Way) -> Way | None:
    if config.max_length < 64 or config.spec.samples:
        return None
    length = config.max_length // 2
    keys: dict[str, Any] = {"max_length": length}
    if config.max_prompt_length and config.max_prompt_length >= length:
        keys["max_prompt_length"] = length // 2
    return replace(way, keys={**way.keys, **keys})
