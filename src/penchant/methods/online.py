"""What methods that sample their own answers have in common: options, clipping, metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from penchant.methods.base import MethodOptions

if TYPE_CHECKING:
    from torch import Tensor

    from penchant.methods.experience import RolloutInputs


# e^30 times any advantage is far outside every clip range, and far from overflow.
LARGEST_LOG_RATIO = 30.0


class RewardOptions(MethodOptions):
    """What judges an answer, and what is made of the scores.

    Attributes:
        learns_from_reward: whether answers must be judged; if not, rewards only report.
    """

    learns_from_reward: ClassVar[bool] = True

    reward: tuple[str, ...] = Field(
        description="What judges an answer; repeat for several. A reward model (folder, run, hub "
        "id), module:function, file.py:function, judge:URL, judge:FILE.yaml, http://..., "
        "http:FILE.yaml, or gsm8k, math, regex:P, length:N, sentiment, format."
    )
    reward_weights: tuple[float, ...] | None = Field(
        None, description="One weight per reward, comma-separated; default 1 each."
    )
    reward_normalization: Literal["auto", "saved", "running", "none"] = Field(
        "auto",
        description="Rewards to mean 0 and deviation 1: by what the reward model saved, else by "
        "those seen so far.",
    )
    score_clip: float | None = Field(
        None, gt=0, description="Normalised rewards stay within plus and minus this."
    )
    length_penalty: float = Field(
        0.0, ge=0, description="Taken off for each token beyond length_budget."
    )
    length_budget: int | None = Field(None, ge=1, description="Tokens that cost nothing.")
    overlong_buffer: int = Field(
        0, ge=0, description="DAPO's form: the last so many tokens before max_completion_length "
        "cost linearly up to overlong_penalty."
    )  # fmt: skip
    overlong_penalty: float = Field(
        1.0, ge=0, description="The penalty of the longest answers (DAPO)."
    )
    missing_eos_penalty: float = Field(
        0.0, ge=0, description="Taken off where the model did not end its answer."
    )
    ngram_repetition_penalty: float = Field(
        0.0, ge=0, description="Times the share of repeated 3-grams is taken off."
    )
    on_reward_error: Literal["raise", "drop"] = Field(
        "raise", description="A reward that fails or is not a number: stop, or drop the answer."
    )
    reward_timeout: float | None = Field(
        None, gt=0, description="Seconds a reward may take for a batch of answers."
    )
    reward_ensemble: Literal["mean", "min", "mean_minus_std"] = Field(
        "mean", description="How the members of an ensemble become one reward."
    )
    reward_ensemble_k: float = Field(
        1.0, ge=0, description="Deviations that mean_minus_std takes off."
    )
    share_reward_adapter: bool = Field(
        True, description="Score a reward model that is a LoRA adapter of the same base on the "
        "policy's own weights."
    )  # fmt: skip
    max_completion_length: int = Field(128, ge=1, description="Tokens of a sampled answer.")

    @field_validator("reward", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("reward_weights", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _rewards_agree(self) -> Self:
        if not self.reward and self.learns_from_reward:
            raise ValueError("reward names nothing; give a reward model or a function")
        if not self.reward:
            self._no_reward_is_shaped()
        if self.reward_weights is not None and len(self.reward_weights) != len(self.reward):
            raise ValueError(
                f"reward_weights has {len(self.reward_weights)} numbers for "
                f"{len(self.reward)} rewards; give one each"
            )
        if self.length_penalty and self.length_budget is None:
            raise ValueError("length_penalty needs length_budget: tokens that cost nothing")
        if self.overlong_buffer and self.overlong_buffer >= self.max_completion_length:
            raise ValueError(
                f"overlong_buffer ({self.overlong_buffer}) must be shorter than "
                f"max_completion_length ({self.max_completion_length})"
            )
        return self

    def _no_reward_is_shaped(self) -> None:
        for name, field in RewardOptions.model_fields.items():
            kept = name in ("reward", "max_completion_length")
            if not kept and getattr(self, name) != field.default:
                raise ValueError(f"{name} is about rewards, and reward names none; drop {name}")


class OnlineOptions(RewardOptions):
    """Options of sampling and of the steps between two samplings."""

    batch_size: int = Field(
        64, ge=1, description="Answers sampled before the weights are updated on them."
    )
    temperature: float = Field(
        1.0, gt=0, description="The temperature of sampling, and of every log-prob."
    )
    top_k: int = Field(0, ge=0, description="Sample from the likeliest tokens only; 0: all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from this much probability.")
    generation_batch_size: int = Field(32, ge=1, description="Answers drawn side by side.")
    generation: Literal[
        "auto", "cached", "static", "continuous", "vllm", "vllm-server"
    ] = Field(
        "auto", description="What draws the answers: a key-value cache here, one of a fixed size "
        "(CUDA graphs), transformers' continuous batching (CUDA; with other answers for another "
        "number of processes), vLLM in this process, or a vLLM server. auto: on a GPU the first of "
        "vllm (one process only), continuous and static that answers, else cached."
    )  # fmt: skip
    importance_sampling: Literal["auto", "off", "token", "sequence"] = Field(
        "auto", description="Weight what another engine drew by the ratio of scored to sampled "
        "probability: of each token, cut at importance_sampling_cap, or of whole answers, left out "
        "above it. auto: sequence with vLLM, else off."
    )  # fmt: skip
    importance_sampling_cap: float = Field(3.0, ge=1, description="The largest such weight.")
    vllm_url: str | None = Field(
        None, description="The vLLM server: http://HOST:PORT, here or in a private network."
    )
    vllm_folder: str | None = Field(
        None, description="A folder that this machine and the server's both see, for the weights; "
        "default: one of this machine."
    )  # fmt: skip
    vllm_server_timeout: float = Field(
        600.0, gt=0, description="Seconds that a server may take to answer, or to come back."
    )
    vllm_max_model_length: int | None = Field(
        None, ge=2, description="Longest prompt with its answer that vLLM makes room for; default "
        "max_length."
    )  # fmt: skip
    vllm_gpu_memory_utilization: float = Field(
        0.3, gt=0, lt=1, description="Share of the GPU's memory that vLLM takes in this process."
    )
    vllm_tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share vLLM's layers.")
    vllm_dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="vLLM's weights in this process; auto: as the run's precision."
    )
    vllm_enable_sleep_mode: bool = Field(
        False, description="vLLM gives its memory back while the policy is trained (CUDA)."
    )
    total_episodes: int | None = Field(
        None, ge=1, description="Answers to sample in all, as if every prompt taught something: "
        "prompts whose answers all get the same reward are left out, and further prompts are "
        "answered until all steps are taken. Default: num_train_epochs passes over the prompts, "
        "or max_steps."
    )  # fmt: skip
    entropy_coef: float = Field(0.0, ge=0, description="Weight of an entropy bonus.")
    log_completions: int = Field(4, ge=0, description="Answers of each batch kept for reading.")

    @model_validator(mode="after")
    def _vllm_is_read(self) -> Self:
        server = {"vllm_url", "vllm_folder", "vllm_server_timeout"}
        fields = type(self).model_fields.items()
        keys = {name: field.default for name, field in fields if name.startswith("vllm_")}
        given = {name for name, default in keys.items() if getattr(self, name) != default}
        read = {"vllm": given - server, "vllm-server": server}.get(self.generation, set())
        if unread := sorted(given - read):
            fitting = "vllm-server" if unread[0] in server else "vllm"
            raise ValueError(
                f"{unread[0]} is not read with generation {self.generation}; drop it, or set "
                f"generation to {fitting}"
            )
        if self.generation == "vllm-server" and self.vllm_url is None:
            raise ValueError("generation vllm-server needs vllm_url, such as http://127.0.0.1:8000")
        return self

    @property
    def importance_level(self) -> Literal["token", "sequence"] | None:
        """Whose ratios weight the advantages; None: nothing is weighted."""
        if self.importance_sampling == "auto":
            return "sequence" if self.generation.startswith("vllm") else None
        return None if self.importance_sampling == "off" else self.importance_sampling

    @property
    def generations(self) -> int:
        """Answers to each prompt."""
        return 1

    @property
    def trained_generations(self) -> int:
        """Answers to each prompt that are trained on."""
        return self.generations

    @property
    def num_trained(self) -> int:
        """Answers of a batch that are trained on, where no prompt is left out."""
        return self.batch_size // self.generations * self.trained_generations

    @property
    def epochs(self) -> int:
        """Training passes over each batch of answers."""
        return 1

    def steps_a_batch(self, mini_batch: int) -> int:
        """Optimizer steps on each batch of answers.

        Args:
            mini_batch: answers a step, of all processes.
        """
        return self.epochs * -(-self.num_trained // mini_batch)

    @property
    def max_gen_batches(self) -> int:
        """How often prompts may be answered until a batch is full of groups that teach."""
        return 1


def ratio_of(log_ratio: Tensor) -> Tensor:
    """exp, bounded so that an answer far from its sampler cannot make gradients infinite."""
    return log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate loss and whether clipping bites, in the shape of `ratio`.

    Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), Eq. 7, negated.
    """
    import torch

    free, bounded = -advantages * ratio, -advantages * ratio.clamp(low, high)
    return torch.maximum(free, bounded), (bounded > free).detach().to(ratio.dtype)


def policy_metrics(inputs: RolloutInputs, clipfrac: Tensor) -> dict[str, Tensor]:
    """What every method that samples reports of a training pass, `[B]` each."""
    log_ratio = (inputs.logprobs - inputs.old_logprobs).detach()
    return {
        "policy/entropy": inputs.token_means(inputs.entropy.detach()),
        "policy/approxkl": inputs.token_means(0.5 * log_ratio.square()),
        "policy/policykl": inputs.token_means(-log_ratio),
        "policy/ratio": inputs.token_means(ratio_of(log_ratio)),
        "policy/clipfrac": clipfrac,
    }
