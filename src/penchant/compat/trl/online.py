"""TRL's GRPO and RLOO: their configurations and trainers."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from pydantic import computed_field

from penchant.compat.trl import logs
from penchant.compat.trl.configs import Chosen, SyncingConfig
from penchant.compat.trl.rewards import as_rewards
from penchant.compat.trl.tables import (
    ONLINE_STANDING,
    ONLINE_TRAINER_STANDING,
    ONLINE_WITHOUT_EFFECT,
    STANDING,
    TRAINER_STANDING,
    WITHOUT_EFFECT,
    Standing,
)
from penchant.compat.trl.trainer import Trainer
from penchant.core.errors import ConfigError

# Keys of ours that TRL has by the same name.
VLLM = (
    *("vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size"),
    "vllm_enable_sleep_mode",
)


class OnlineConfig(SyncingConfig):
    """What the trainers take whose model answers by itself."""

    standing: ClassVar[Standing] = {
        **{name: one for name, one in STANDING.items() if name != "max_completion_length"},
        **ONLINE_STANDING,
    }
    without_effect: ClassVar[frozenset[str]] = WITHOUT_EFFECT | ONLINE_WITHOUT_EFFECT
    options: ClassVar[tuple[str, ...]] = (
        *("beta", "num_generations", "num_iterations", "epsilon", "epsilon_high"),
        *("temperature", "top_p", "max_completion_length", "reward_weights"),
        "mask_truncated_completions",
    )

    disable_dropout: bool = False
    shuffle_dataset: bool | None = True
    # Answers
    max_prompt_length: int = 512
    max_completion_length: int = 512
    num_generations: int = 8
    generation_batch_size: int | None = None
    steps_per_generation: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = 0
    use_vllm: bool = False
    vllm_gpu_memory_utilization: float = 0.3
    vllm_max_model_length: int | None = None
    vllm_tensor_parallel_size: int = 1
    vllm_enable_sleep_mode: bool = False
    use_transformers_continuous_batching: bool = False
    use_transformers_paged: bool = False
    chat_template_kwargs: dict[str, Any] | str | None = None
    # The loss
    beta: float = 0.0
    num_iterations: int = 1
    epsilon: float = 0.2
    epsilon_high: float | None = None
    reward_weights: list[float] | None = None
    mask_truncated_completions: bool = False

    @computed_field  # type: ignore[prop-decorator]
    @property
    def max_length(self) -> int:
        """Tokens of prompt and completion together."""
        return self.max_prompt_length + self.max_completion_length

    def _sampling(self, method: str, **changes: Any) -> Chosen:
        """The method, with how often it samples and how."""
        rewards = len(self.reward_weights or [1.0])
        return self._options_of(
            method,
            batch_size=self._batch_size(),
            top_k=self.top_k or 0,
            **self._generation(),
            reward=["<reward>"] * rewards,  # until a trainer has the functions
            reward_normalization="none",
            on_reward_error="drop",  # None leaves an answer out; what is raised is raised
            skip_zero_variance=False,
            **changes,
        )

    def _refuse_masks(self, of: str) -> None:
        """Refuse to leave cut answers out of means that count them.

        Args:
            of: what takes such means.

        Raises:
            ConfigError: they are to be left out.
        """
        if self.mask_truncated_completions:
            raise ConfigError(
                f"mask_truncated_completions with {of} divides by the answers that it leaves out "
                "too, which cannot be had here: drop it, or take GRPO with loss_type='dapo', which "
                "divides by the tokens that are left"
            )

    def _batch_size(self) -> int:
        """Answers that are sampled at a time."""
        step = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if self.generation_batch_size is not None and self.steps_per_generation is not None:
            raise ConfigError(
                "generation_batch_size and steps_per_generation say the same; drop one of them"
            )
        passes = self.steps_per_generation or self.gradient_accumulation_steps
        size = self.generation_batch_size or self.per_device_train_batch_size * passes
        if size % step:
            raise ConfigError(
                f"generation_batch_size ({size} answers) must be a multiple of "
                f"per_device_train_batch_size * gradient_accumulation_steps ({step}); change one "
                "of them, or steps_per_generation"
            )
        if size % self.num_generations:
            raise ConfigError(
                f"generation_batch_size ({size} answers) must be a multiple of num_generations "
                f"({self.num_generations}); change one of them"
            )
        return size

    def _generation(self) -> dict[str, Any]:
        """What draws the answers; settings of vLLM without it say nothing, as in TRL."""
        if self.use_vllm:
            own = {name: getattr(self, name) for name in VLLM}
            return {"generation": "vllm", **own, **self._importance_sampling()}
        continuous = self.use_transformers_continuous_batching or self.use_transformers_paged
        return {"generation": "continuous" if continuous else "auto"}

    def _importance_sampling(self) -> dict[str, Any]:
        return {"importance_sampling": "off"}

    @abstractmethod
    def chosen(self) -> Chosen:
        """The method, and its options."""


class GRPOConfig(OnlineConfig):
    """Of `GRPOTrainer`."""

    options: ClassVar[tuple[str, ...]] = (
        *(*OnlineConfig.options, "loss_type", "importance_sampling_level", "entropy_coef"),
        *("use_bias_correction_kl", "multi_objective_aggregation"),
    )

    scale_rewards: bool | str = "group"
    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    entropy_coef: float = 0.0
    use_bias_correction_kl: bool = True
    multi_objective_aggregation: str = "sum_then_normalize"
    vllm_importance_sampling_correction: bool = True
    vllm_importance_sampling_mode: str = "sequence_mask"
    vllm_importance_sampling_clip_max: float | None = 3.0

    def _importance_sampling(self) -> dict[str, Any]:
        if not self.vllm_importance_sampling_correction:
            return {"importance_sampling": "off"}
        levels = {"token_truncate": "token", "sequence_mask": "sequence"}
        mode, cap = self.vllm_importance_sampling_mode, self.vllm_importance_sampling_clip_max
        if mode not in levels or cap is None:
            raise ConfigError(
                f"vllm_importance_sampling_mode={mode!r} with clip_max {cap} cannot be had here: "
                "set token_truncate or sequence_mask, and a largest weight"
            )
        return {"importance_sampling": levels[mode], "importance_sampling_cap": cap}

    def chosen(self) -> Chosen:
        """The method, and its options.

        Raises:
            ConfigError: CISPO with a bound below 1, which TRL's default is, or cut answers that are
                left out of means over answers.
        """
        if self.loss_type in ("grpo", "dr_grpo"):
            self._refuse_masks(f"loss_type={self.loss_type!r}")
        scale = self.scale_rewards
        if isinstance(scale, bool):
            scale = "group" if scale else "none"
        if self.multi_objective_aggregation == "normalize_then_sum":
            scale = "group"  # TRL does not read it then
        if self.loss_type != "cispo":
            return self._sampling("grpo", scale_rewards=scale)
        bound = self.epsilon if self.epsilon_high is None else self.epsilon_high
        if bound <= 1:
            raise ConfigError(
                f"loss_type='cispo' takes epsilon_high for the largest ratio, and {bound} would "
                "shrink the gradient of every token; set epsilon_high=5.0, as ScaleRL does"
            )
        return self._sampling("grpo", scale_rewards=scale, epsilon_high=bound - 1)


class RLOOConfig(OnlineConfig):
    """Of `RLOOTrainer`."""

    options: ClassVar[tuple[str, ...]] = (*OnlineConfig.options, "normalize_advantages")

    num_generations: int = 2
    beta: float = 0.05
    normalize_advantages: bool = False
    reward_clip_range: tuple[float, float] | None = None

    def chosen(self) -> Chosen:
        """The method, and its options.

        Raises:
            ConfigError: rewards that are to be clipped to a range that is not symmetric, or cut
                answers that are left out.
        """
        self._refuse_masks("RLOO")
        low, high = self.reward_clip_range or (None, None)
        if low is not None and high is not None and low != -high:
            raise ConfigError(
                f"reward_clip_range=({low}, {high}) cannot be had here: rewards are clipped to "
                "plus and minus one number; set (-c, c), or clip in the reward function"
            )
        return self._sampling("rloo", score_clip=high)


class OnlineTrainer(Trainer):
    """What the trainers share whose model answers by itself.

    Args:
        model: as of every trainer.
        reward_funcs: what judges the answers: a function that is called by keyword with `prompts`,
            `completions`, `completion_ids` and each column of the data as a list, a sequence
            classifier, the name of a reward model, or a list of them. Of chats, prompts and
            completions are lists of messages.
        reward_processing_classes: the tokenizers of reward models that are passed as objects.
    """

    names = logs.ONLINE_NAMES
    standing: ClassVar[Standing] = {**TRAINER_STANDING, **ONLINE_TRAINER_STANDING}

    def __init__(
        self,
        model: Any = None,
        reward_funcs: Any = None,
        *,
        reward_processing_classes: Any = None,
        **arguments: Any,
    ) -> None:
        self.reward_funcs: list[Any] = []
        self._given_rewards = (reward_funcs, reward_processing_classes)
        super().__init__(model, **arguments)

    def _own_keys(self) -> dict[str, Any]:
        self.reward_funcs = as_rewards(*self._given_rewards)
        return {"reward": [_name(one) for one in self.reward_funcs]}

    def _rewards(self) -> list[Any]:
        return self.reward_funcs


def _name(reward: Any) -> str:
    """What `config.yaml` calls a reward."""
    return reward if isinstance(reward, str) else str(reward.__name__)


class GRPOTrainer(OnlineTrainer):
    """GRPO and its relatives, on prompts."""

    config_class = GRPOConfig


class RLOOTrainer(OnlineTrainer):
    """REINFORCE leave-one-out, on prompts."""

    config_class = RLOOConfig
