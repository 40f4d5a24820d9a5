"""How much memory a run takes, by phase and by part: the one formula for it.

Training asks it whether a reference and all activations fit, `penchant check` what a run will
take, and `penchant advise` how a method can be run. They differ in where the sizes come from:
measured on the loaded model (`models.memory`), or read off its configuration (`rough_sizes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penchant.models.vocabulary import CHUNK_ELEMENTS, KEPT_ELEMENTS

# Bytes that an optimizer keeps for each number it trains: of a layer between embeddings and head,
# and of another. Codes of 8 bits have a scale for each 256. Two moments in bf16 beside bf16
# weights are half as much.
STATE_BYTES = {
    "adamw": (8.0, 8.0),
    "adamw_8bit": (2 * (1 + 4 / 256), 8.0),
    "paged_adamw_8bit": (2 * (1 + 4 / 256), 8.0),
    "adafactor": (0.0, 0.0),
    "muon": (4.0, 8.0),
    "sgd": (0.0, 0.0),
}
# Bytes beside its state that an update takes for each number of the largest matrix. On a GPU
# bitsandbytes updates in place.
UPDATE_BYTES = {
    ("adamw_8bit", "cpu"): 20.0,
    ("paged_adamw_8bit", "cpu"): 20.0,
    **{(optim, device): size for optim, size in (("adafactor", 8.0), ("muon", 12.0))
       for device in ("cpu", "cuda")},
}  # fmt: skip

# Bytes that autograd keeps per token, for every input and output of a linear layer, by the
# arithmetic and whether it trains LoRA. Measured on a Llama of 135M parameters with the packed
# layout: 1.21 MB (fp32, LoRA) for 0.305M of them.
ACTIVATION_BYTES = {
    ("fp32", True): 4.0,
    ("fp32", False): 4.4,
    ("half", True): 2.4,
    ("half", False): 3.0,
}

# Chunks of logits that a walk over the vocabulary holds at once.
NUM_CHUNKS = 3


def state_bytes(optim: str, inner: float, outer: float, *, half: bool) -> float:
    """Bytes of an optimizer's state.

    Args:
        optim: its name.
        inner: numbers that it trains in the layers between embeddings and head; outer: elsewhere.
        half: they are in bf16, whose state torchao keeps in as many bytes, or in 8 bits.
    """
    by_inner, by_outer = STATE_BYTES[optim]
    if half:
        return (by_inner / 2 if optim == "adamw" else by_inner) * (inner + outer)
    return by_inner * inner + by_outer * outer


def update_bytes(optim: str, largest: int, device: str) -> float:
    """Bytes that an update takes beside the state, where so many numbers are in one matrix."""
    return UPDATE_BYTES.get((optim, device), 0.0) * largest


PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "reference",
    "rewards",
    "teacher",
    "rollouts",
    "process",
)


@dataclass(frozen=True)
class Sizes:
    """What a run's memory depends on, in bytes where they do not say otherwise.

    Attributes:
        weights: of the policy with heads and value model; trained: of these, what changes.
        reference, rewards: of their weights.
        process: what is in memory beside all that.
        fixed, by_token: activations of a pass, without checkpointing.
        width: inputs and outputs of the policy's linear layers: times a rank it is LoRA's weights.
        matrices: elements of those layers' weights; matrix_bytes: of each of them.
        state: of the optimizer, in bytes for each byte that is trained; update: what a step of it
            takes beside that.
        hidden, num_layers, vocabulary: of the model, in elements.
        cache_token: keys and values of one token.
        head_trained, fused_head: of the language-model head.
        half: whether the arithmetic is half precision.
        device: cpu or cuda.
        whole: weights that a pass has whole, of those that processes divide among them.
        teacher: weights of the model that is distilled.
    """

    weights: float
    trained: float
    reference: float
    rewards: float
    process: float
    fixed: float
    by_token: float
    width: int
    matrices: int
    matrix_bytes: float
    state: float
    update: float
    hidden: int
    num_layers: int
    vocabulary: int
    cache_token: float
    head_trained: bool
    fused_head: bool
    half: bool
    device: str
    whole: float = 0.0
    teacher: float = 0.0


@dataclass(frozen=True)
class Load:
    """The largest passes of a run.

    Attributes:
        tokens: that the largest micro-batch lays out.
        predicted: of these, where a token of an answer is predicted.
        checkpointing: whether activations are recomputed.
        accumulates: whether earlier passes of the step have left their gradients.
        moments: whether the optimizer's state is there, as in every step but the first.
        side_by_side: answers that are sampled at once; cached: tokens whose keys and values they
            keep.
    """

    tokens: int
    predicted: int
    checkpointing: bool = False
    accumulates: bool = True
    moments: bool = True
    side_by_side: int = 0
    cached: int = 0


@dataclass(frozen=True)
class Footprint:
    """Bytes of a run by phase, and in each by what they hold."""

    phases: Mapping[str, Mapping[str, float]]

    @property
    def totals(self) -> dict[str, float]:
        """Bytes of each phase."""
        return {name: sum(parts.values()) for name, parts in self.phases.items()}

    @property
    def peak(self) -> float:
        """Of the phase that takes most."""
        return max(self.totals.values())

    @property
    def parts(self) -> dict[str, float]:
        """What that phase is made of."""
        totals = self.totals
        highest = self.phases[max(totals, key=totals.__getitem__)]
        return {name: highest.get(name, 0.0) for name in PARTS}


def footprint(sizes: Sizes, load: Load) -> Footprint:
    """Memory of a run, from what its models take and the passes it makes."""
    gradients = sizes.trained
    state = sizes.state * sizes.trained
    moments = state if load.moments else 0.0
    held = {
        "weights": sizes.weights,
        "reference": sizes.reference,
        "rewards": sizes.rewards,
        "teacher": sizes.teacher,
        "process": sizes.process,
    }
    activations = _activation_bytes(sizes, load)
    # A gradient of the embeddings comes before it is added to the head's.
    embeddings = 4.0 * sizes.vocabulary * sizes.hidden if sizes.head_trained else 0.0
    # Gradients come as activations go, unless earlier passes of the step have left theirs.
    beside = gradients if load.accumulates else max(0.0, gradients + embeddings - activations)
    if load.accumulates or not beside:
        activations += embeddings
    phases = {
        "training": {
            **held,
            "gradients": beside,
            "optimizer": moments,
            "activations": activations,
        },
        "update": {**held, "gradients": gradients, "optimizer": state + sizes.update},
    }
    if load.side_by_side:
        phases["sampling"] = {
            **held,
            "optimizer": moments,
            "rollouts": _sampling_bytes(sizes, load),
        }
    return Footprint(phases)


def _activation_bytes(sizes: Sizes, load: Load) -> float:
    """Kept for the backward pass, with the one layer whose backward runs and the head."""
    one_layer = sizes.by_token / max(1, sizes.num_layers)
    by_token, fixed = sizes.by_token, sizes.fixed
    if load.checkpointing and sizes.whole:  # half-precision copies go with a layer's weights
        fixed /= max(1, sizes.num_layers)
    if load.checkpointing:  # each layer's input, and all of the layer that is recomputed
        by_token = one_layer + 4 * sizes.hidden * sizes.num_layers
    passes = (by_token + one_layer) * load.tokens
    return sizes.whole + fixed + passes + _head_bytes(sizes, load)


def _head_bytes(sizes: Sizes, load: Load) -> float:
    """What walking the vocabulary takes beside what autograd keeps."""
    logits = load.predicted * sizes.vocabulary
    if not sizes.fused_head:
        return 2.0 * 4 * logits
    widest = CHUNK_ELEMENTS.get(sizes.device, CHUNK_ELEMENTS["cuda"])
    chunk = 4.0 * min(logits, NUM_CHUNKS * widest)
    return chunk + (4.0 * logits if sizes.head_trained and logits <= KEPT_ELEMENTS else 0.0)


def _sampling_bytes(sizes: Sizes, load: Load) -> float:
    """Keys and values of answers under way, the logits of their next tokens, rounded weights."""
    # A layer's cache grows by making a longer one beside it.
    cache = sizes.cache_token * load.cached * (1 + 1 / max(1, sizes.num_layers))
    return cache + 4 * 4.0 * load.side_by_side * sizes.vocabulary + sizes.fixed
