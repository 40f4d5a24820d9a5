"""The policy's weights as folders that vLLM reads: an adapter, or all of them."""

from __future__ import annotations

import math
import secrets
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from penchant.core.adapters import changes_base
from penchant.core.errors import ModelError
from penchant.core.team import ALONE, Team
from penchant.models.adapter_files import adapter_base
from penchant.models.effective import effective_weights, saved_buffers
from penchant.models.locate import is_adapter
from penchant.models.save import gathered_weights
from penchant.rl.sampling.vllm.control import LABEL

if TYPE_CHECKING:
    from penchant.models.scoring import Scorer


# The ranks that vLLM makes room for (MaxLoRARanks in its config/lora.py).
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_MEMORY = Path("/dev/shm")


def room_for(rank: int) -> int | None:
    """The smallest rank that vLLM makes room for and that holds `rank`; None: there is none."""
    return next((room for room in RANKS if room >= rank), None)


def base_of(name: str) -> str:
    """The model that vLLM loads by itself: an adapter's base, whose weights are handed over."""
    return adapter_base(name) if is_adapter(Path(name)) else name


@dataclass
class HandedWeights:
    """Folders with the policy's weights, one a version; those of the version before are deleted.

    Args:
        policy: whose weights they are.
        name: the resolved name of its model.
        parent: where the folders are made; default: in memory where they fit, else among the
            temporary files.
        team: the processes of the run, whose leader writes for all of them.
    """

    policy: Scorer
    name: str
    parent: Path | None = None
    team: Team = ALONE
    version: int = 0
    """How often weights were written."""
    folder: Path | None = None
    """The present version's."""
    run: str = field(init=False)
    """Tells the weights of this run from those of others on the same server."""
    _kept: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False)
    """The leader's, which goes when the run ends."""

    def __post_init__(self) -> None:
        self.run = self.team.agree(secrets.token_hex(4))
        if self.team.leads:
            parent = self.parent or _roomy(self.policy, adapter=self.rank is not None)
            self._kept = tempfile.TemporaryDirectory(prefix=LABEL, dir=parent)
            if self.parent is not None:
                Path(self._kept.name).chmod(0o755)  # a server may run as another user
        self._root = Path(self.team.agree(self._kept.name if self._kept else ""))

    @property
    def label(self) -> str:
        """The present version's name, which no other run gives."""
        return f"{LABEL}{self.run}-{self.version}"

    @cached_property
    def rank(self) -> int | None:
        """The room that vLLM needs for the adapter; None where all weights are handed over.

        Found once: the engine starts with it, and adapters of rewards may come to the policy.
        """
        model: Any = self.policy.model
        if not isinstance(model, PeftModel) or is_adapter(Path(self.name)):
            return None
        rank = _rank(model)
        return None if rank is None else room_for(rank)

    def write(self) -> Path:
        """Write the present weights as a new version; every process calls it.

        Raises:
            ModelError: an adapter that vLLM cannot serve, on weights that are quantised.
        """
        before, self.version = self.folder, self.version + 1
        self.folder = self._root / self.label
        self._save(self.folder)
        if before is not None and self.team.leads:
            shutil.rmtree(before)
        self.team.wait()
        return self.folder

    def _save(self, folder: Path) -> None:
        """Write one version; processes that hold a part of the weights each give theirs."""
        model: Any = self.policy.model
        if self.rank is None and isinstance(model, PeftModel):
            causal: Any = self.policy.causal_model
            if getattr(causal, "quantization_method", None) is not None:
                raise ModelError(
                    "vLLM cannot serve this adapter by itself, and a quantised base cannot be "
                    "merged with it for each batch: drop quantization, or set generation to cached"
                )
            with self.policy.opened(layers=True):
                if self.team.leads:
                    merged = {**saved_buffers(self.policy), **dict(effective_weights(self.policy))}
                    causal.save_pretrained(folder, state_dict=merged)
            return
        own = {"selected_adapters": ["default"]} if self.rank is not None else {}
        weights = gathered_weights(model, keep=self.team.leads)
        if self.team.leads:
            model.save_pretrained(folder, state_dict=weights, **own)


def _rank(model: PeftModel) -> int | None:
    """The largest rank of a layer's adapter; None where vLLM would make another model of it.

    vLLM applies pairs of matrices at one scale, to the weights as they were saved.
    """
    config: Any = model.peft_config["default"]
    if not isinstance(config, LoraConfig) or config.layer_replication or changes_base(vars(config)):
        return None
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    parts: list[Any] = [module for module in model.modules() if isinstance(module, kinds)]
    scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    if not all(_is_pair(part, scale) for part in parts):
        return None
    return max(config.r, *(part.r.get("default", 0) for part in parts))


def _is_pair(part: Any, scale: float) -> bool:
    if not isinstance(part, LoraLayer) or isinstance(part, ParamWrapper):
        return False
    beside = part.lora_variant.get("default") or part.lora_bias.get("default")
    return not beside and math.isclose(part.scaling.get("default", scale), scale)


def _roomy(policy: Scorer, *, adapter: bool) -> Path | None:
    """Memory as a folder, where two versions of what is written fit twice; None: elsewhere."""
    kept = policy.model.parameters()
    size = sum(p.numel() * p.element_size() for p in kept if p.requires_grad or not adapter)
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 4 * size:
        return _MEMORY
    return None
