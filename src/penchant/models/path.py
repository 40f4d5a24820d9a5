"""Which way a model would be scored, told from its configuration alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from penchant.models.architecture import stateful_modules
from penchant.models.attention import layer_kinds
from penchant.models.rough_sizes import empty_model
from penchant.models.selfcheck import unknown_layers, unservable

PADDED = "padded rows, a row for each completion, as attention plain asks"

NOT_TOLD = "the model's code does not tell its {} where the segments of a packed row are"
# Types of models that use transformers' attention interface, or none, and what keeps a packed row
# from them. A run finds the same when it compares its first records.
APART = {
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba", "zaya"), NOT_TOLD.format("mixers")),
    **dict.fromkeys(("nemotron", "stablelm"), NOT_TOLD.format("attention")),
    "doge": "its attention makes a mask of its own",
    "recurrent_gemma": "its recurrent layers take masks and positions of whole rows",
    "xlstm": "its layers carry a state in a way that is not known here",
}


def describe_path(
    name: str, *, trust_remote_code: bool = False, attention: str = "auto"
) -> list[tuple[str, str]]:
    """What a model's layers do, and which layout follows from that.

    Args:
        name: of a resolved model or adapter.
        trust_remote_code: run code that comes with the model.
        attention: as the run's key of that name says.

    Returns:
        Headings, each with one line.

    Raises:
        ModelError: no configuration, or not one of a language model.
    """
    model = empty_model(name, trust_remote_code=trust_remote_code)
    config = model.config.get_text_config()
    lines = [("model", type(model).__name__), ("layers", _layers(config))]
    lines += [("scores", words) for words in [_scores(model, config)] if words]
    told = PADDED if attention == "plain" else layout(model)
    if told.startswith("packed") and (modules := stateful_modules(model)):
        kinds = Counter(type(module).__name__ for module in modules)
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        lines.append(("with a state", f"{counted}: a row for each completion around these alone"))
    return [*lines, ("layout", told)]


def _layers(config: Any) -> str:
    sizes = {
        "sliding_attention": ("window", getattr(config, "sliding_window", None)),
        "chunked_attention": ("chunks of", getattr(config, "attention_chunk_size", None)),
    }
    parts = []
    for kind, count in Counter(layer_kinds(config)).items():
        word, size = sizes.get(kind, ("", None))
        parts.append(f"{count} {kind}" + (f" ({word} {size})" if size else ""))
    return ", ".join(parts)


def _scores(model: Any, config: Any) -> str:
    parts = []
    if cap := getattr(config, "attn_logit_softcapping", None):
        parts.append(f"capped at {cap:g}")
    if any(parameter.rpartition(".")[2] == "sinks" for parameter, _ in model.named_parameters()):
        parts.append("sinks")
    if (keys := getattr(config, "qk_head_dim", None)) and keys != config.v_head_dim:
        parts.append(f"latent, with keys of {keys} and values of {config.v_head_dim}")
    return ", ".join(parts)


def layout(model: Any) -> str:
    """Which layout a run would score a model in, and why; weights are not looked at."""
    if unknown_layers(model):
        return f"padded rows: {unservable(model, trained=True)}"
    if reason := unservable(model, trained=True):
        return f"prompts repeated in one row, or else padded rows: {reason}"
    if not model._can_set_attn_implementation():
        return (
            "prompts repeated in one row, or else padded rows: the model's code does not use "
            "transformers' attention interface"
        )
    if reason := APART.get(model.config.get_text_config().model_type, ""):
        return f"prompts repeated in one row, or else padded rows: {reason}"
    return "packed, prompts shared; the first records of a run are compared with a plain forward"
