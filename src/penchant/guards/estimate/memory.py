"""Peak memory of a run by part, and ways to lower it: arithmetic on what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from penchant.guards.estimate.sizes import Footing
from penchant.models.footprint import recomputed_bytes, training_state
from penchant.models.logprobs import CHUNK_ELEMENTS, KEPT_ELEMENTS

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.guards.estimate.workload import Workload

LORA_R = 16

# Of the bytes that a layer keeps: gradients and temporaries while its backward runs.
WITHIN_LAYER = 1.0

# Chunks of logits that a walk over the vocabulary holds at once.
NUM_CHUNKS = 3


@dataclass(frozen=True)
class Peak:
    """Where a run's memory is highest.

    Attributes:
        phases: peak bytes by phase of the run; the highest is the run's.
        parts: what that one is made of; they add up to it.
    """

    phases: Mapping[str, float]
    parts: Mapping[str, float]


def foresee(footing: Footing, config: RunConfig, work: Workload, *, checkpointing: bool) -> Peak:
    """Peak memory of a run, from what its model takes and the passes it makes.

    Args:
        footing: of the model.
        config: of the run.
        work: its passes.
        checkpointing: activations are recomputed.
    """
    gradients, moments = training_state(footing.trained)
    held = {
        "weights": footing.weights,
        "reference": footing.reference,
        "rewards": footing.rewards,
        "process": footing.process,
    }
    activations = _activations(footing, work, checkpointing=checkpointing)
    # Gradients come as activations go, unless earlier passes of the step have left theirs.
    rest = _embedding_bytes(footing) if footing.head_trained else 0.0
    first = config.gradient_accumulation_steps == 1
    within = (
        max(0.0, gradients + rest - activations) if first else gradients
    )  # beside the activations
    backward = {
        "gradients": within,
        "optimizer": moments if work.num_steps > 1 else 0.0,
        "activations": activations + (rest if not first or within == 0 else 0.0),
    }
    phases = {
        "training": {**held, **backward},
        "update": {**held, "gradients": gradients, "optimizer": moments},
    }
    if config.spec.samples:
        rollouts = _sampling_bytes(footing, config, work)
        kept = moments if work.num_steps > 1 else 0.0
        phases["sampling"] = {**held, "optimizer": kept, "rollouts": rollouts}
    totals = {name: sum(parts.values()) for name, parts in phases.items()}
    highest = max(totals, key=totals.__getitem__)
    parts = {"activations": 0.0, "rollouts": 0.0, **phases[highest]}
    totals["loading"] = footing.peak
    # Loading is over: what it took more than the run will is part of the process's peak.
    parts["loading"] = max(0.0, footing.peak - totals[highest])
    return Peak(totals, {name: parts.get(name, 0.0) for name in PARTS})


PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "reference",
    "rewards",
    "rollouts",
    "process",
    "loading",
)


def _activations(footing: Footing, work: Workload, *, checkpointing: bool) -> float:
    by_token, layers = footing.by_token, max(1, footing.num_layers)
    within = WITHIN_LAYER * by_token / layers
    if checkpointing:
        by_token = recomputed_bytes(by_token, footing.hidden, layers)
    return footing.fixed + (by_token + within) * work.longest + _head_bytes(footing, work)


def _head_bytes(footing: Footing, work: Workload) -> float:
    """What walking the vocabulary takes beside what autograd keeps."""
    logits = work.predicted * footing.vocabulary
    if not footing.fused_head:
        return 2.0 * 4 * logits
    chunk = 4.0 * min(logits, NUM_CHUNKS * CHUNK_ELEMENTS[footing.device])
    return chunk + (4.0 * logits if footing.head_trained and logits <= KEPT_ELEMENTS else 0.0)


def _embedding_bytes(footing: Footing) -> float:
    """A gradient of the embeddings, before it is added to the head's."""
    return 4.0 * footing.vocabulary * footing.hidden


def _sampling_bytes(footing: Footing, config: RunConfig, work: Workload) -> float:
    """Keys and values of answers under way, and the logits of their next tokens."""
    options: Any = config.options
    side_by_side = min(options.generation_batch_size, options.batch_size)
    tokens = side_by_side * (config.prompt_budget + options.max_completion_length)
    tokens = min(tokens, side_by_side * work.longest)
    # A layer's cache grows by making a longer one beside it.
    cache = footing.cache_token * tokens * (1 + 1 / max(1, footing.num_layers))
    return cache + 4 * 4.0 * side_by_side * footing.vocabulary


@dataclass(frozen=True)
class Way:
    """A change of a run that takes less memory.

    Attributes:
        keys: to set.
        footing: what the model takes then.
        checkpointing: activations are recomputed.
    """

    keys: Mapping[str, Any]
    footing: Footing
    checkpointing: bool


def ways(config: RunConfig, footing: Footing, *, checkpointing: bool) -> Iterator[Way]:
    """Changes that take less memory: each alone, then together, the gentlest first."""
    now = Way({}, footing, checkpointing)
    steps = [_smaller_batch, _lighter_reference, _checkpointed, _with_lora, _half_base, _shorter]
    together = now
    for step in steps:
        alone = step(config, now)
        if alone is not None:
            yield alone
        more = step(config, together)
        if more is not None:
            if together.keys and more.keys != (alone.keys if alone else None):
                yield more
            together = more


def _smaller_batch(config: RunConfig, way: Way) -> Way | None:
    size, passes = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if size == 1:
        return None
    keys = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": size * passes}
    return replace(way, keys={**way.keys, **keys})


def _lighter_reference(config: RunConfig, way: Way) -> Way | None:
    if not way.footing.reference or config.sync_ref_model or config.reference == "cache":
        return None
    if config.lora_r and not config.reference_model:
        kind, left = "adapter", 0.0
    elif config.cacheable:
        kind, left = "cache", 0.0
    elif config.reference in ("auto", "copy"):
        kind, left = "copy-8bit", way.footing.reference / (2 if way.footing.half else 4)
    else:
        return None
    return replace(
        way,
        keys={**way.keys, "reference": kind},
        footing=replace(way.footing, reference=left),
    )


def _checkpointed(_: RunConfig, way: Way) -> Way | None:
    if way.checkpointing:
        return None
    return replace(way, keys={**way.keys, "gradient_checkpointing": "on"}, checkpointing=True)


def _with_lora(config: RunConfig, way: Way) -> Way | None:
    if config.lora_r or config.sync_ref_model:
        return None
    keys = {k: v for k, v in way.keys.items() if k != "reference"}
    footing = way.footing.with_lora(LORA_R, half=False)
    if config.reference_model:
        footing = replace(footing, reference=way.footing.reference)
        keys = dict(way.keys)
    elif config.reference in ("copy", "copy-8bit", "copy-4bit", "cache"):
        keys["reference"] = "adapter"
    return replace(way, keys={**keys, "lora_r": LORA_R}, footing=footing)


def _half_base(config: RunConfig, way: Way) -> Way | None:
    if config.lora_r or config.sync_ref_model or way.footing.half or "lora_r" not in way.keys:
        return None
    frozen = (way.footing.weights - way.footing.trained) / 2
    footing = replace(way.footing, weights=frozen + way.footing.trained)
    return replace(way, keys={**way.keys, "dtype": "bf16"}, footing=footing)


def _shorter(config: RunConfig, way: Way) -> Way | None:
    if config.max_length < 64 or config.spec.samples:
        return None
    length = config.max_length // 2
    keys: dict[str, Any] = {"max_length": length}
    if config.max_prompt_length and config.max_prompt_length >= length:
        keys["max_prompt_length"] = length // 2
    return replace(way, keys={**way.keys, **keys})
