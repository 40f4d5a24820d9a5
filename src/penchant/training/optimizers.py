"""The optimizers beside plain AdamW, from torch, transformers, bitsandbytes and torchao.

None is our own; `MuonWithAdamW` only steps two of torch's together, as Muon's authors do.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from penchant.core.commands import install
from penchant.core.errors import ConfigError
from penchant.models.architecture import text_backbone

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.models.scoring import Scorer

logger = logging.getLogger("penchant")

COMPILERS = ("g++", "clang++", "c++")
# Parameters with settings of their own, as every optimizer takes them.
Groups = list[dict[str, Any]]


def require_optimizer(config: RunConfig, num_processes: int) -> None:
    """Refuse an optimizer that cannot run here, before a weight is loaded.

    Raises:
        ConfigError: a package or a compiler is missing, or processes would diverge.
    """
    optim, package, extra = f"optim {config.optim}", None, "quantization"
    if config.rounds_stochastically:
        package, extra, optim = "torchao", "torchao", f"dtype bf16 with lora_r 0 ({optim})"
        if num_processes > 1:
            raise ConfigError(
                f"{optim} rounds at random, and each of the {num_processes} processes would round "
                "otherwise; set dtype fp32, or train in one process"
            )
        if not torch.cuda.is_available() and not os.environ.get("CXX") and not any(
            map(shutil.which, COMPILERS)
        ):  # fmt: skip
            raise ConfigError(
                f"{optim}: torchao compiles its update, and no C++ compiler is here; install g++, "
                "or set dtype fp32"
            )
    elif config.optim in ("adamw_8bit", "paged_adamw_8bit"):
        package = "bitsandbytes"
        if config.optim == "paged_adamw_8bit" and not torch.cuda.is_available():
            logger.info("optim paged_adamw_8bit: a CPU has no pages; it is adamw_8bit here")
    elif config.optim == "muon" and not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"optim muon needs torch 2.9, and this is {torch.__version__}")
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(f"{optim} needs {package}, which is not installed: {install(extra)}")


@dataclass(frozen=True)
class Places:
    """Where in a scorer parameters are.

    Args:
        scorer: whose they are.
        stands_for: by the id of a parameter that is none of them, that of the one it stands for.
    """

    scorer: Scorer
    stands_for: Mapping[int, int]

    def among(self, parameter: nn.Parameter, ids: set[int]) -> bool:
        """Whether a parameter, or the one it stands for, is among those with these ids."""
        return self.stands_for.get(id(parameter), id(parameter)) in ids


def make(groups: Groups, config: RunConfig, places: Places) -> torch.optim.Optimizer:
    """The optimizer that a configuration names, of some of a scorer's parameters in groups."""
    if config.rounds_stochastically:
        return _torchao(groups, config)
    return MAKERS[config.optim](groups, config, places)


def _adam_settings(config: RunConfig) -> dict[str, Any]:
    return {
        "lr": config.peak_learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
    }


def _torchao(groups: Groups, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW whose update is rounded to bf16 weights at random, so that small steps add up."""
    from torchao import optim

    factory = optim.AdamW8bit if config.optim == "adamw_8bit" else optim._AdamW
    made: torch.optim.Optimizer = factory(
        groups, **_adam_settings(config), bf16_stochastic_round=True
    )
    return made


def _bitsandbytes(groups: Groups, config: RunConfig, places: Places) -> torch.optim.Optimizer:
    """AdamW with moments in 8 bits (Dettmers et al. 2022); embeddings' have 32, as it advises."""
    from bitsandbytes.optim.adamw import AdamW8bit
    from bitsandbytes.optim.optimizer import GlobalOptimManager

    paged = config.optim == "paged_adamw_8bit" and groups[0]["params"][0].device.type != "cpu"
    optimizer: Any = AdamW8bit(groups, **_adam_settings(config), is_paged=paged)
    # The library's own manager is global, and would keep models beyond their run.
    optimizer.mng = GlobalOptimManager.__new__(GlobalOptimManager)
    optimizer.mng.initialize()
    embedded = embedding_weights(places.scorer)
    for parameter in (p for group in groups for p in group["params"]):
        if places.among(parameter, embedded):
            optimizer.mng.override_config(parameter, "optim_bits", 32)
    made: torch.optim.Optimizer = optimizer
    return made


def _adafactor(groups: Groups, config: RunConfig, _: Places) -> torch.optim.Optimizer:
    """Shazeer and Stern 2018, with the run's own rate, as transformers' trainer takes it.

    torch's multiplies the rate by the size of the weights: a usual rate of AdamW would be about
    fifty times too low for it.
    """
    from transformers.optimization import Adafactor

    return Adafactor(
        groups,
        lr=config.peak_learning_rate,
        scale_parameter=False,
        relative_step=False,
    )


def _sgd(groups: Groups, config: RunConfig, _: Places) -> torch.optim.Optimizer:
    """Without momentum: it keeps nothing."""
    return torch.optim.SGD(groups, lr=config.peak_learning_rate)


def _muon(groups: Groups, config: RunConfig, places: Places) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for the hidden layers' matrices, AdamW for all else.

    Its rate is scaled to the size of AdamW's updates (Liu et al. 2025, arXiv 2502.16982), so that
    a rate that suits AdamW suits it too.
    """
    matrices = hidden_matrices(places.scorer)
    hidden = [p for group in groups for p in group["params"] if places.among(p, matrices)]
    others = [
        {**group, "params": [p for p in group["params"] if not places.among(p, matrices)]}
        for group in groups
    ]
    others = [group for group in others if group["params"]]
    parts: list[torch.optim.Optimizer] = []
    if hidden:
        rate, decay = config.peak_learning_rate, config.weight_decay
        parts.append(
            torch.optim.Muon(
                hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )
        )  # fmt: skip
    if others:
        parts.append(torch.optim.AdamW(others, **_adam_settings(config)))
    return MuonWithAdamW(parts)


class MuonWithAdamW(torch.optim.Optimizer):
    """Optimizers that step together, each with groups of its own; state and rates are as one's."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of each."""
        assert closure is None
        for part in self._parts:
            muon = isinstance(part, torch.optim.Muon)
            # Whoever loads a state replaces these, here and not in the parts.
            part.param_groups = [g for g in self.param_groups if ("ns_steps" in g) == muon]
            part.state = self.state
            part.step()


def embedding_weights(scorer: Scorer) -> set[int]:
    """The ids of the parameters of layers that look tokens or positions up."""
    return {
        id(parameter)
        for module in scorer.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }


def hidden_matrices(scorer: Scorer) -> set[int]:
    """The ids of the parameters that Muon is for: matrices of layers between embeddings and head.

    Adapters of such layers count; those of an embedding or a head do not.
    """
    ends = embedding_weights(scorer)
    for model in scorer.causal_models:
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            ends |= {id(p) for p in layer.parameters()} if layer is not None else set()
    hidden = (p for model in scorer.causal_models for p in text_backbone(model).parameters())
    return {id(p) for p in hidden if p.ndim == 2} - ends


Maker = Callable[[Groups, "RunConfig", "Places"], torch.optim.Optimizer]
MAKERS: dict[str, Maker] = {
    "adamw_8bit": _bitsandbytes,
    "paged_adamw_8bit": _bitsandbytes,
    "adafactor": _adafactor,
    "muon": _muon,
    "sgd": _sgd,
}
