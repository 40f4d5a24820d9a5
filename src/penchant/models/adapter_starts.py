"""Adapters that start from what passes over records take out of the base: CorDA and LoRA-GA.

Yang et al. 2024, https://arxiv.org/abs/2406.05223, and Wang et al. 2024,
https://arxiv.org/abs/2407.05000. The decompositions are PEFT's. The base changes by what the
adapter starts with, so that what is saved is PEFT's conversion: a plain adapter of twice the rank,
which opens on the base as it was.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from penchant.core.adapters import TAKEN_OUT
from penchant.core.errors import ModelError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

logger = logging.getLogger("penchant")

# Of the records, whose gradients are averaged.
NUM_GRADIENTS = 64
# Share of what was taken out of a layer by which a second computation may differ: rounding.
SAME = 1e-2


def look_at_records(
    model: Any,
    config: LoraConfig,
    texts: Sequence[Sequence[int]],
    device: torch.device | None,
) -> None:
    """Find what the adapter that `config` describes will start from.

    CorDA takes the covariance of each layer's inputs; LoRA-GA the gradient of each layer's weights
    under the loss of a language model.

    Args:
        model: without the adapter; it is moved to `device`, where that is given.
        config: `init_lora_weights` is `corda` or `lora_ga`; its layers are named.
        texts: token ids of some records.
        device: which makes the passes.

    Raises:
        ModelError: PEFT refuses, or misses a package.
    """
    if device is not None:
        model.to(device)
    rows = [torch.tensor([[*text]], device=model.device) for text in texts]
    initial = str(config.init_lora_weights)
    logger.info("the adapter starts from passes over %d records (%s)", len(rows), initial)
    try:
        if initial.startswith("corda"):
            from peft.tuners.lora.config import CordaConfig
            from peft.tuners.lora.corda import preprocess_corda

            config.corda_config = config.corda_config or CordaConfig()
            preprocess_corda(model, config, lambda: _forward(model, rows))
        else:
            from peft.tuners.lora.config import LoraGAConfig
            from peft.tuners.lora.loraga import preprocess_loraga

            config.lora_ga_config = config.lora_ga_config or LoraGAConfig()
            preprocess_loraga(model, config, lambda: _backward(model, rows[:NUM_GRADIENTS]))
            _require_directions(model, config.r)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"peft: init_lora_weights {initial} needs attrs, which is not installed: "
            "pip install attrs"
        ) from error
    except ValueError as error:
        raise ModelError(f"peft: init_lora_weights {initial}: {error}; set another one") from error


def start_from_records(
    adapted: PeftModel, texts: Sequence[Sequence[int]], device: torch.device | None
) -> None:
    """Give a fresh adapter what EVA finds in records, or keep what was taken out of the base.

    Args:
        adapted: the model with the fresh adapter; EVA moves it to `device`, where that is given.
        texts: token ids of some records.
        device: which makes the passes.

    Raises:
        ModelError: too few tokens, or PEFT refuses.
    """
    config: Any = adapted.peft_config["default"]
    initial = str(config.init_lora_weights)
    if initial == "eva":
        from penchant.models.eva import start_from_inputs

        start_from_inputs(adapted.to(device) if device is not None else adapted, texts)
    elif initial.startswith(TAKEN_OUT):
        keep_start(adapted)


def _require_directions(model: Any, rank: int) -> None:
    """Refuse a rank for which a layer's gradient has too few directions."""
    for name, module in model.named_modules():
        gradient = getattr(module, "_peft_loraga_grad", None)
        if gradient is not None and 2 * rank > min(gradient.shape):
            raise ModelError(
                f"peft: init_lora_weights lora_ga takes twice lora_r ({rank}) directions of every "
                f"layer's gradient, and {name} has {min(gradient.shape)}; set lora_r to "
                f"{min(gradient.shape) // 2} or less"
            )


def _forward(model: Any, rows: Sequence[torch.Tensor]) -> None:
    for row in rows:  # `[1, T]` each: PEFT takes no padding off
        model(input_ids=row)


def _backward(model: Any, rows: Sequence[torch.Tensor]) -> None:
    for row in rows:
        model(input_ids=row, labels=row).loss.backward()


def keep_start(model: PeftModel) -> None:
    """Keep what an adapter starts from beside the model, until that goes: saving needs it.

    Args:
        model: with the fresh adapter.
    """
    folder = tempfile.mkdtemp(prefix="penchant-start-")
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    config: Any = model.peft_config["default"]
    own, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(str(Path(folder) / "start"))
    config.init_lora_weights = own
    model.start_folder = str(Path(folder) / "start")  # type: ignore[assignment]


def read_start(folder: str) -> dict[str, torch.Tensor]:
    """What an adapter started with, by the names that PEFT saves it under."""
    from safetensors.torch import load_file

    return load_file(Path(folder) / "adapter_model.safetensors")


def other_start(then: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> str:
    """Why a saved adapter does not fit a base that something was taken out of; empty if it fits.

    A checkpoint holds the adapter; what its base lacks is computed again, which on another device
    may come out otherwise. LoRA-GA pairs singular vectors whose signs are not fixed.

    Args:
        then: what the adapter of the saved run started with; empty where that was not saved.
        now: what this one started with.
    """
    for name in then:
        other = name.replace(".lora_A.", ".lora_B.")
        if other == name:
            continue
        probe = torch.ones(then[name].shape[1])
        before, again = (
            some[other].float() @ (some[name].float() @ probe) for some in (then, now)
        )  # [out] each
        share = float((before - again).norm() / before.norm().clamp(min=1e-12))
        if not share <= SAME:  # also true for NaN
            return (
                f"what the adapter takes out of the base comes out otherwise than in the run that "
                f"is resumed ({name}: {share:.2g} of it differs), as it may on another device or "
                "with other versions; resume where the run began, or begin again with --overwrite"
            )
    return ""
