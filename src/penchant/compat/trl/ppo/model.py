"""A causal language model with a value head, as TRL's PPO took one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from penchant.compat.trl.arguments import Refusals
from penchant.compat.trl.objects import require_plain
from penchant.compat.trl.tables import Standing
from penchant.core.errors import ConfigError, ModelError
from penchant.models.load import load_causal_model
from penchant.models.locate import is_adapter, resolve
from penchant.models.lora import fuse_lora
from penchant.models.memory import is_quantised
from penchant.models.policy import VALUE_HEAD
from penchant.models.quantised import require_numbers

if TYPE_CHECKING:
    from torch import Tensor

# Of a value head's weights among a model's.
WITHIN = "v_head.summary."
LOAD_FIRST = "load the model with AutoModelForCausalLM and pass the object in place of its name"
QUANTISE_FIRST = (
    "load the model quantised with AutoModelForCausalLM, and pass the object and peft_config"
)
MODEL_STANDING: Standing = {
    "summary_dropout_prob": (
        (None, 0, 0.0),
        "the value head has no dropout (TRL's was off in every pass of `step`); drop it",
    ),
    "load_in_8bit": ((None, False), QUANTISE_FIRST),
    "load_in_4bit": ((None, False), QUANTISE_FIRST),
    "quantization_config": ((None,), QUANTISE_FIRST),
    "reward_adapter": ((None,), "score answers with a model of your own; drop it"),
    "device_map": ((None,), "the trainer puts the model on its device; drop it"),
    "low_cpu_mem_usage": ((None, True, False), "drop it"),
    "use_cache": ((None, True, False), "drop it"),
    "attn_implementation": ((None,), LOAD_FIRST),
    "revision": ((None, "main"), LOAD_FIRST),
    "token": ((None,), "set the environment variable HF_TOKEN"),
    "use_auth_token": ((None,), "set the environment variable HF_TOKEN"),
    "cache_dir": ((None,), "set the environment variable HF_HOME"),
}
ARGUMENTS = (
    *("peft_config", "torch_dtype", "dtype", "trust_remote_code", "is_trainable"),
    *("v_head_init_strategy", "v_head_initializer_range"),
)


class ValueHead(nn.Module):
    """From a hidden state to one number, in fp32.

    Args:
        hidden_size: of the state.
        init_strategy: `normal`, with zero bias; None: as PyTorch starts a linear layer.
        initializer_range: deviation of `normal`.
    """

    def __init__(
        self,
        hidden_size: int,
        init_strategy: Literal["normal"] | None = None,
        initializer_range: float = 0.2,
    ) -> None:
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1, dtype=torch.float32)
        if init_strategy not in (None, "normal"):
            raise ConfigError(f"v_head_init_strategy={init_strategy!r}: set 'normal' or drop it")
        if init_strategy == "normal":
            nn.init.normal_(self.summary.weight, std=initializer_range)
            nn.init.zeros_(self.summary.bias)

    def forward(self, states: Tensor) -> Tensor:
        """`[..., hidden]` to `[..., 1]`."""
        value: Tensor = self.summary(states.to(self.summary.weight.dtype))
        return value


class AutoModelForCausalLMWithValueHead(nn.Module):
    """A causal language model, or one with an adapter, and a value head on its last hidden state.

    Args:
        pretrained_model: a transformers model, or a `peft.PeftModel` with LoRA.
        v_head_init_strategy, v_head_initializer_range: as for `ValueHead`.

    Attributes:
        pretrained_model: as passed.
        v_head: the value head.
        is_peft_model: whether there is an adapter.

    Raises:
        UserError: a model that PPO cannot train, or an argument that cannot have its effect.
    """

    def __init__(
        self,
        pretrained_model: Any,
        *,
        v_head_init_strategy: Literal["normal"] | None = None,
        v_head_initializer_range: float = 0.2,
        **others: Any,
    ) -> None:
        from peft import PeftModel

        super().__init__()
        refusals = Refusals()
        refusals.settle(others, MODEL_STANDING, ARGUMENTS)
        refusals.raise_all()
        self.is_peft_model = isinstance(pretrained_model, PeftModel)
        base = pretrained_model.get_base_model() if self.is_peft_model else pretrained_model
        if self.is_peft_model:
            _require_lora(pretrained_model.active_peft_config)
        else:
            require_plain(base, "pretrained_model")
            require_numbers(base, "there is no adapter")
        if base.get_output_embeddings() is None:
            raise ModelError(f"{type(base).__name__} is no causal language model; load it with "
                             "AutoModelForCausalLM")  # fmt: skip
        self.pretrained_model = pretrained_model
        self.v_head = ValueHead(
            base.config.get_text_config().hidden_size,
            v_head_init_strategy,
            v_head_initializer_range,
        ).to(base.device)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        peft_config: Any = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        trust_remote_code: bool = False,
        is_trainable: bool = True,
        **arguments: Any,
    ) -> AutoModelForCausalLMWithValueHead:
        """Load a model, and its value head where one lies beside it.

        Args:
            pretrained_model_name_or_path: a folder, run, hub id, adapter or .gguf file, or a model.
            peft_config: a `peft.LoraConfig`; an adapter is then merged before.
            torch_dtype, dtype: of the weights; default fp32. The value head is always fp32.
            trust_remote_code: run code that comes with the model.
            is_trainable: whether an adapter that is loaded is trained on.
            arguments: as for the class.

        Raises:
            UserError: as for the class, or nothing is there.
        """
        name = pretrained_model_name_or_path
        folder = None
        if isinstance(name, str | Path):
            resolved = resolve(str(name))
            folder = Path(resolved)
            model: Any = load_causal_model(
                resolved,
                dtype=_dtype(torch_dtype if dtype is None else dtype),
                trust_remote_code=trust_remote_code,
                keep_adapter=peft_config is None,
            )
            if is_adapter(folder) and peft_config is None and is_trainable:
                for parameter_name, parameter in model.named_parameters():
                    parameter.requires_grad_("lora_" in parameter_name)
        elif torch_dtype is not None or dtype is not None:
            raise ConfigError("torch_dtype is for a name; the model that was passed has its own")
        else:
            model = name
        if peft_config is not None:
            model = _with_lora(model, peft_config)
        wrapped = cls(model, **arguments)
        if folder is not None and (saved := _saved_head(folder)):
            wrapped.v_head.summary.load_state_dict(saved)
        return wrapped

    @property
    def config(self) -> Any:
        """The model's."""
        return self.pretrained_model.config

    @property
    def generation_config(self) -> Any:
        """The model's."""
        return self.pretrained_model.generation_config

    @property
    def device(self) -> torch.device:
        """Where the value head is."""
        return self.v_head.summary.weight.device

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        return_past_key_values: bool = False,
        **arguments: Any,
    ) -> tuple[Any, ...]:
        """One pass of the model.

        Returns:
            Logits `[B, T, V]` in fp32, the loss where `labels` are passed, and values `[B, T]`;
            with `return_past_key_values` also the cache.
        """
        out = self.pretrained_model(
            input_ids=input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            **{**arguments, "output_hidden_states": True},
        )
        outputs = (out.logits.float(), out.loss, self.v_head(out.hidden_states[-1]).squeeze(-1))
        return (*outputs, out.past_key_values) if return_past_key_values else outputs

    def generate(self, *args: Any, **arguments: Any) -> Any:
        """What the model's own `generate` does."""
        return self.pretrained_model.generate(*args, **arguments)

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> None:
        """Write the model or its adapter as any tool reads it, and the value head beside it.

        Args:
            save_directory: made if need be.
            arguments: of the model's own `save_pretrained`.
        """
        self.pretrained_model.save_pretrained(str(save_directory), **arguments)
        weights = {n: w.detach().cpu() for n, w in self.v_head.summary.state_dict().items()}
        save_file(weights, Path(save_directory) / VALUE_HEAD)


def _dtype(wanted: torch.dtype | str | None) -> torch.dtype:
    dtype = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted or torch.float32
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"torch_dtype={wanted!r}: name one, such as torch.bfloat16")
    return dtype


def _saved_head(folder: Path) -> dict[str, Tensor]:
    """The value head that lies beside a model, or within its weights, where TRL put it."""
    if (folder / VALUE_HEAD).exists():
        return load_file(folder / VALUE_HEAD)
    if not (folder / "model.safetensors").exists():
        return {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith(WITHIN)]  # noqa: SIM118
        return {name.removeprefix(WITHIN): file.get_tensor(name) for name in names}


def _require_lora(peft_config: Any) -> None:
    from peft import LoraConfig

    if not isinstance(peft_config, LoraConfig):
        raise ConfigError(
            f"peft_config must be a peft.LoraConfig, got {type(peft_config).__name__}"
        )


def _with_lora(model: Any, peft_config: Any) -> Any:
    from peft import PeftModel, get_peft_model

    _require_lora(peft_config)
    if isinstance(model, PeftModel):
        raise ModelError("the model has an adapter already; drop peft_config")
    require_plain(model, "pretrained_model")
    if is_quantised(model):
        from penchant.models.quantised import prepare_quantised

        prepare_quantised(model)
    own = copy.deepcopy(peft_config)
    own.task_type = own.task_type or "CAUSAL_LM"
    try:
        adapted = get_peft_model(model, own)
    except ValueError as error:
        raise ConfigError(f"peft_config: {error}") from error
    fuse_lora(adapted)
    return adapted
