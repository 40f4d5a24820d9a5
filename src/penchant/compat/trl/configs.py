"""TRL's configurations: their arguments, TRL's defaults, and the method that they come to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from penchant.compat.trl.arguments import Arguments, Refusals, nearest
from penchant.compat.trl.keys import translate
from penchant.compat.trl.tables import STANDING, WITHOUT_EFFECT, Standing
from penchant.config.keys import RunConfig, load_config
from penchant.core.errors import ConfigError
from penchant.methods import METHODS


class Chosen(NamedTuple):
    """A method of Penchant and its options."""

    method: str
    options: dict[str, Any]


class TrainingConfig(Arguments):
    """What all the trainers take; every default is TRL's, of version 1.16.

    Where TRL has no argument of that name any more, the default is the last one it had.
    """

    standing: ClassVar[Standing] = STANDING
    without_effect: ClassVar[frozenset[str]] = WITHOUT_EFFECT
    renamed: ClassVar[Mapping[str, str]] = {
        "evaluation_strategy": "eval_strategy",
        "no_cuda": "use_cpu",
    }
    # Loss arguments that a method may lack: then they may only stand at their defaults.
    options: ClassVar[tuple[str, ...]] = ("beta",)

    output_dir: str | Path = "trainer_output"
    overwrite_output_dir: bool = False
    seed: int = 42
    report_to: str | list[str] | None = "none"
    trust_remote_code: bool = False
    model_init_kwargs: dict[str, Any] | None = None
    use_cpu: bool = False
    # Data
    train_sampling_strategy: str = "random"
    # The optimizer
    optim: str = "adamw_torch_fused"
    learning_rate: float = 1e-6
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: str = "linear"
    warmup_ratio: float | None = None
    warmup_steps: float = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    router_aux_loss_coef: float | None = None
    bf16: bool | None = None
    fp16: bool = False
    gradient_checkpointing: bool | None = None
    disable_dropout: bool = True
    # Evaluation and checkpoints
    per_device_eval_batch_size: int = 8
    eval_strategy: str = "no"
    eval_steps: int | float | None = None
    eval_on_start: bool = False
    logging_steps: int = 10
    save_strategy: str = "steps"
    save_steps: int | float = 500
    save_total_limit: int | None = None
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None

    def __init__(self, output_dir: str | Path | None = None, **arguments: Any) -> None:
        """Check the arguments.

        Raises:
            ConfigError: one that is unknown, cannot have its effect here, or has a wrong value.
        """
        if output_dir is not None:
            arguments["output_dir"] = output_dir
        super().__init__(**arguments)

    def check(self) -> None:
        """Refuse what no run could have, before there is a model or data."""
        held_out = {} if self.eval_strategy == "no" else {"eval_data": "<data>"}
        self.run_config({"model": "<model>", "data": "<data>", "lora_r": 0, **held_out})

    def run_config(self, keys: Mapping[str, Any]) -> RunConfig:
        """The configuration of a run on what `keys` tell: the model, the data, LoRA.

        Raises:
            ConfigError: a line for each argument that cannot have its effect, or has a wrong value.
        """
        refusals = Refusals()
        translated = translate(self.model_dump(), refusals)
        with refusals.gathering():
            method, options = self.chosen()
            with refusals.gathering():
                labels = {"unpair": METHODS[method].data == "labels"}
                config = load_config(method, {**translated, **labels, **options, **keys})
        refusals.raise_all()
        return config

    @abstractmethod
    def chosen(self) -> Chosen:
        """The method, and its options."""

    def _options_of(self, method: str, **changes: Any) -> Chosen:
        """Loss arguments by name; one that the method lacks is passed over at its default."""
        own = METHODS[method].options.model_fields
        options: dict[str, Any] = {}
        for name in self.options:
            value = getattr(self, name)
            if name in own or value != type(self).model_fields[name].default:
                options[name] = value
        return Chosen(method, {**options, **changes})


class OfflineConfig(TrainingConfig):
    """What the trainers take whose completions are there already."""

    max_length: int = 1024
    max_prompt_length: int | None = None
    generate_during_eval: bool = False


class RewardConfig(OfflineConfig):
    """Of `RewardTrainer`."""

    options: ClassVar[tuple[str, ...]] = ("center_rewards_coefficient",)

    learning_rate: float = 1e-4
    center_rewards_coefficient: float | None = None

    def chosen(self) -> Chosen:
        """The method, and its options."""
        return self._options_of("reward")


class SyncingConfig(TrainingConfig):
    """How a reference follows the model."""

    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512


class ReferenceConfig(SyncingConfig, OfflineConfig):
    """What the trainers with a reference take beside."""

    beta: float = 0.1
    precompute_ref_log_probs: bool = False

    def run_config(self, keys: Mapping[str, Any]) -> RunConfig:
        """As of every trainer, with a reference that is scored once where that is asked for."""
        config = super().run_config(keys)
        if not self.precompute_ref_log_probs:
            return config
        if not config.cacheable:
            raise ConfigError(
                "precompute_ref_log_probs cannot be had with these arguments, which ask the "
                "reference for more than can be kept; drop it"
            )
        return config.model_copy(update={"reference": "cache"})


# TRL's loss type: the method, and what it is told.
DPO_LOSSES: dict[str, Chosen] = {
    "sigmoid": Chosen("dpo", {"loss_type": "sigmoid"}),
    "hinge": Chosen("dpo", {"loss_type": "hinge"}),
    "ipo": Chosen("ipo", {}),
    "exo_pair": Chosen("exo", {}),
    "nca_pair": Chosen("nca", {}),
    "robust": Chosen("robust", {}),
    "bco_pair": Chosen("bco", {}),
    "sppo_hard": Chosen("sppo", {}),
    "aot": Chosen("aot", {"paired": True}),
    "aot_unpaired": Chosen("aot", {"paired": False}),
    "apo_zero": Chosen("apo_zero", {}),
    "apo_down": Chosen("apo_down", {}),
    "discopop": Chosen("discopop", {}),
    "sigmoid_norm": Chosen("sigmoid_norm", {}),
}


class DPOConfig(ReferenceConfig):
    """Of `DPOTrainer`."""

    options: ClassVar[tuple[str, ...]] = (
        *("beta", "label_smoothing", "f_divergence_type", "f_alpha_divergence_coef"),
        *("ld_alpha", "use_weighting", "discopop_tau", "rpo_alpha"),
    )

    loss_type: str | list[str] = "sigmoid"
    loss_weights: list[float] | None = None
    label_smoothing: float = 0.0
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    ld_alpha: float | None = None
    use_weighting: bool = False
    discopop_tau: float = 0.05
    rpo_alpha: float | None = None

    def chosen(self) -> Chosen:
        """The method, and its options.

        Raises:
            ConfigError: losses that cannot be added, or an argument without effect.
        """
        if self.f_alpha_divergence_coef != 0.5 and self.f_divergence_type != "alpha_divergence":
            raise ConfigError(
                "f_alpha_divergence_coef is of alpha_divergence; set f_divergence_type"
            )
        weights = self._weights()
        sft = weights.pop("sft", None)
        if sft is not None and self.rpo_alpha is not None:
            raise ConfigError("rpo_alpha and a loss_type 'sft' are the same term; drop one of them")
        losses = [(self._loss(name), weight) for name, weight in weights.items()]
        if len(losses) == 1 and losses[0][1] == 1.0:
            chosen = losses[0][0]
            if sft is not None:
                chosen.options["rpo_alpha"] = sft
            return chosen
        if len({chosen.method for chosen, _ in losses}) < len(losses):
            raise ConfigError(
                f"loss_type {list(weights)} names one method of ours twice; keep one of them"
            )
        added = {"sft": sft} if sft else {}
        return Chosen(
            "mpo",
            {
                "losses": {**{chosen.method: weight for chosen, weight in losses}, **added},
                "loss_options": {chosen.method: chosen.options for chosen, _ in losses},
            },
        )

    def _loss(self, loss_type: str) -> Chosen:
        """The method of one loss type, and its options."""
        if loss_type not in DPO_LOSSES:
            raise ConfigError(f"unknown loss_type {loss_type!r}; {nearest(loss_type, DPO_LOSSES)}")
        method, keys = DPO_LOSSES[loss_type]
        chosen = self._options_of(method, **keys)
        if method == "exo" and "label_smoothing" not in self.model_fields_set:
            del chosen.options["label_smoothing"]  # 0 has no logarithm: the method's default
        return chosen

    def _weights(self) -> dict[str, float]:
        """The weight of each loss type, in their order."""
        types = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        weights = self.loss_weights or [1.0] * len(types)
        if len(weights) != len(types):
            raise ConfigError(
                f"loss_weights has {len(weights)} values for {len(types)} loss types; set one each"
            )
        return dict(zip(types, weights, strict=True))


class KTOConfig(ReferenceConfig):
    """Of `KTOTrainer`."""

    options: ClassVar[tuple[str, ...]] = (
        *("beta", "desirable_weight", "undesirable_weight", "loss_type"),
    )

    loss_type: str = "kto"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def chosen(self) -> Chosen:
        """The method, and its options."""
        return self._options_of("kto")
