"""The arguments of TRL 0.11.4's PPO, and the run that they come to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from penchant.compat.trl.arguments import Arguments, Refusals
from penchant.compat.trl.tables import Standing
from penchant.config.keys import TRACKERS, RunConfig, load_config
from penchant.core.errors import ConfigError

TARGET = 6.0
STOPPING_KL = 1.0
# Larger than any gradient, and small enough for fp32 to divide by one that is 0.
NO_CLIPPING = 1e30

CONFIG_STANDING: Standing = {
    "accelerator_kwargs": (
        (None, {}),
        "arithmetic has the precision of the model's weights; load it with torch_dtype",
    ),
    "push_to_hub_if_best_kwargs": ((None, {}), "save_pretrained, then upload the folder"),
    "compare_steps": ((1,), "nothing is uploaded while training; drop it"),
    "world_size": ((None, 1), "training runs in one process; drop it"),
    "is_encoder_decoder": ((None, False), "only decoders are trained; drop it"),
    "is_peft_model": ((None,), "the model says so itself; drop it"),
    "backward_batch_size": ((None,), "set mini_batch_size and gradient_accumulation_steps"),
    "global_backward_batch_size": (
        (None,),
        "set mini_batch_size and gradient_accumulation_steps",
    ),
    "global_batch_size": ((None,), "training runs in one process; set batch_size"),
}


class PPOConfig(Arguments):
    """Of `PPOTrainer`; every default is TRL's, of version 0.11.4.

    TRL has two targets. `target` is the divergence of a whole answer from the reference, in nats,
    that the adaptive coefficient aims at; `target_kl` ends the epochs of a step, with
    `early_stopping`, once the policy has moved 1.5 times as far from the one that sampled, in nats
    a token (default 1.0). Without `early_stopping` TRL never reads `target_kl`, but scripts set it
    for the adaptive coefficient: there it is the target wherever `target` is not given. With
    neither, the target is 6.0.

    `exp_name`, `task_name`, `model_name`, `query_dataset` and `reward_model` are names for the
    tracker.
    """

    standing: ClassVar[Standing] = CONFIG_STANDING
    without_effect: ClassVar[frozenset[str]] = frozenset({"dataset_num_proc"})
    renamed: ClassVar[Mapping[str, str]] = {"forward_batch_size": "mini_batch_size"}

    exp_name: str | None = None
    task_name: str | None = None
    model_name: str | None = None
    query_dataset: str | None = None
    reward_model: str | None = None
    seed: int = Field(0, ge=0)
    log_with: str | None = None
    tracker_kwargs: dict[str, Any] = Field(default_factory=dict)
    tracker_project_name: str = "trl"
    project_kwargs: dict[str, Any] = Field(default_factory=dict)
    remove_unused_columns: bool = True
    # Sizes
    steps: int = Field(20000, ge=1)
    batch_size: int = Field(128, ge=1)
    mini_batch_size: int = Field(128, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    ppo_epochs: int = Field(4, ge=1)
    # The optimizer
    learning_rate: float = Field(1.41e-5, gt=0)
    max_grad_norm: float | None = Field(None, gt=0)
    gradient_checkpointing: bool = False
    optimize_device_cache: bool = False
    optimize_cuda_cache: bool | None = None
    # Scores
    use_score_scaling: bool = False
    use_score_norm: bool = False
    score_clip: float | None = Field(None, gt=0)
    whiten_rewards: bool = False
    # The penalty
    kl_penalty: Literal["kl", "abs", "mse", "full"] = "kl"
    init_kl_coef: float = Field(0.2, ge=0)
    adap_kl_ctrl: bool = True
    target: float | None = Field(None, gt=0)
    target_kl: float | None = Field(None, gt=0)
    horizon: float = Field(10000.0, gt=0)
    early_stopping: bool = False
    # The losses
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    ratio_threshold: float = 10.0

    def check(self) -> None:
        """Require that the arguments agree.

        Raises:
            ConfigError: which do not, and what to set.
        """
        refusals = Refusals()
        for part in (self._check_sizes, self._check_tracking, self._check_pairs):
            with refusals.gathering():
                part()
        with refusals.gathering():
            self.run_config("<model>")
        refusals.raise_all()

    def _check_sizes(self) -> None:
        if self.batch_size % self.step_size:
            raise ConfigError(
                f"batch_size ({self.batch_size}) must be a multiple of mini_batch_size * "
                f"gradient_accumulation_steps ({self.step_size}), the answers of an optimizer "
                "step; change one of them"
            )

    def _check_tracking(self) -> None:
        if self.log_with is not None and self.log_with not in TRACKERS:
            raise ConfigError(f"log_with={self.log_with!r}: set one of {', '.join(TRACKERS)}")
        if other := self.project_kwargs.keys() - {"project_dir", "logging_dir"}:
            raise ConfigError(
                f"project_kwargs: {', '.join(sorted(other))} cannot be had here; logging_dir can"
            )
        if self.log_with == "tensorboard" and self.tracker_folder is None:
            raise ConfigError(
                "log_with='tensorboard' needs a folder; set project_kwargs={'logging_dir': ...}"
            )

    def _check_pairs(self) -> None:
        if self.use_score_norm and not self.use_score_scaling:
            raise ConfigError("use_score_norm needs use_score_scaling=True; set it")
        if self.optimize_device_cache and self.optimize_cuda_cache is not None:
            raise ConfigError(
                "optimize_device_cache and optimize_cuda_cache are the same argument; drop one"
            )

    @property
    def step_size(self) -> int:
        """Answers of one optimizer step; TRL's `backward_batch_size`."""
        return self.mini_batch_size * self.gradient_accumulation_steps

    @property
    def total_ppo_epochs(self) -> int:
        """Batches that `steps` answers come to."""
        return math.ceil(self.steps / self.batch_size)

    @property
    def adaptive_target(self) -> float:
        """Nats an answer that the adaptive coefficient aims at."""
        if self.target is not None:
            return self.target
        return TARGET if self.early_stopping or self.target_kl is None else self.target_kl

    @property
    def stopping_kl(self) -> float | None:
        """Nats a token beyond which, 1.5 times, a step ends; None without `early_stopping`."""
        if not self.early_stopping:
            return None
        return STOPPING_KL if self.target_kl is None else self.target_kl

    @property
    def empties_cache(self) -> bool:
        """Whether the GPU's cache is emptied after every step."""
        return bool(self.optimize_cuda_cache) or self.optimize_device_cache

    @property
    def tracker_folder(self) -> Path | None:
        """Where trackers write."""
        folder = self.project_kwargs.get("logging_dir") or self.project_kwargs.get("project_dir")
        return None if folder is None else Path(folder)

    def to_dict(self) -> dict[str, Any]:
        """Every argument with its value."""
        return self.model_dump()

    def run_config(self, model: str) -> RunConfig:
        """What the engine reads of a run on `model`.

        Raises:
            ConfigError: a value that PPO cannot have.
        """
        same = ("kl_penalty", "init_kl_coef", "horizon", "whiten_rewards", "gamma", "lam")
        clip = ("cliprange", "cliprange_value", "vf_coef", "ratio_threshold", "ppo_epochs")
        given = "adap_kl_ctrl" in self.model_fields_set
        values = {
            **{name: getattr(self, name) for name in (*same, *clip, "batch_size", "seed")},
            "model": model,
            "data": "<queries>",
            "reward": "<scores>",
            "lora_r": 0,  # a model that is passed has its adapter already
            # By default a coefficient of 0 may stand: 0 stays 0.
            "adap_kl_ctrl": self.adap_kl_ctrl and (given or self.init_kl_coef > 0),
            "target_kl": self.adaptive_target,
            "early_stopping_kl": self.stopping_kl,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "constant",
            "warmup_ratio": 0.0,
            "max_grad_norm": self.max_grad_norm or NO_CLIPPING,
            "per_device_train_batch_size": self.mini_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
        }
        return load_config("ppo", values)
