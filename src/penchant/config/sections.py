"""The keys of the configuration that every method has, by section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from penchant.config.values import Columns, CommaSeparated, Kwargs, Listed, TemplateKwargs

# What config.yaml of a run holds beside its keys.
RECORDED = ("data_fingerprints", "num_processes", "versions")

ReferenceKind = Literal["auto", "adapter", "copy", "copy-8bit", "copy-4bit", "cache", "none"]


class Section(BaseModel):
    """A group of flat keys; its docstring is what `--help` calls it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


class RunSection(Section):
    """Run"""

    output: Path = Field(Path("run"), description="Folder that receives everything the run writes.")
    resume: bool = Field(False, description="Go on from the newest sound checkpoint in output.")
    overwrite: bool = Field(
        False, description="Remove the run that output holds, once this one is ready to start."
    )
    seed: int = Field(0, ge=0, description="Seed of the split, the order, LoRA and dropout.")
    report_to: CommaSeparated = Field(
        "none", description="Trackers, comma-separated: tensorboard, wandb, trackio, mlflow."
    )


class DataSection(Section):
    """Data"""

    data: Listed = Field(
        description="Training data: a file (JSON Lines, JSON, CSV, Parquet), a folder, a pattern "
        "such as 'data/*.jsonl' or a hub id; repeated, all of them, in this order."
    )
    eval_data: Listed | None = Field(None, description="Held-out data, in any of the same forms.")
    split: str = Field("train", description="Which split to take of data that have several.")
    eval_split: str | None = Field(
        None, description="Which split to take of eval_data; default: the same as split."
    )
    columns: Columns = Field(
        {}, description="The data's own names of columns, as chosen=better,rejected=worse."
    )
    train_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Hold out the rest of data, whole prompts at a time; not with eval_data.",
    )
    strict: bool = Field(False, description="Any refused row is an error.")
    max_length: int = Field(1024, ge=2, description="Tokens of prompt and completion together.")
    max_prompt_length: int | None = Field(
        None, ge=1, description="Tokens of the prompt, cut on the left; default max_length // 2."
    )
    chat_template: str | None = Field(
        None, description="A Jinja file, or chatml, in place of the model's chat template."
    )
    chat_template_kwargs: TemplateKwargs = Field(
        {},
        description="Options of the chat template, as enable_thinking=false or JSON; a column of "
        "this name goes before them, row by row.",
    )
    loss_on_turns: Literal["assistant", "last"] = Field(
        "assistant",
        description="Of completions of several turns, train on all that the assistant says, or on "
        "its last turn alone; never on what others say.",
    )
    unpair: bool = Field(
        False, description="Methods for labels: turn each pair into a good and a bad completion."
    )
    token_cache: bool = Field(
        True,
        description="Keep the token ids of 2,000 records or more in cache_dir: a second run of the "
        "same data, tokenizer and lengths starts at once.",
    )
    shuffle: bool = Field(True, description="Visit the pairs in a new random order every epoch.")


class ModelSection(Section):
    """Model"""

    model: str = Field(description="Folder, hub id or .gguf file of the model to tune.")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="The dtype of the weights; auto: fp32, or bf16 for a frozen base under bf16. "
        "bf16 with lora_r 0 trains bf16 weights, which torchao's adamw or adamw_8bit rounds at "
        "random.",
    )
    quantization: Literal["none", "4bit", "8bit"] = Field(
        "none",
        description="Quantise the frozen weights under LoRA by bitsandbytes while they are loaded: "
        "4bit (QLoRA: NF4 with double quantisation) or 8bit; norms, embeddings and the head stay "
        "in fp32. none: as the model was saved, which may be quantised already.",
    )
    frozen_dtype: Literal["auto", "fp32"] = Field(
        "auto",
        description="The dtype in which a copied or named reference and reward models are held. "
        "auto: matrices have the dtype of the arithmetic; fp32: all weights are in fp32.",
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with the model.")
    attention: Literal["auto", "sdpa", "flex", "varlen", "plain"] = Field(
        "auto",
        description="Kernel of the packed layout (auto: sdpa on the CPU, flex on CUDA; "
        "varlen: CUDA, half precision), or plain: pad instead of packing.",
    )
    reference: ReferenceKind = Field(
        "auto",
        description="Where reference log-probs come from: the switched-off adapter, a frozen copy "
        "(also quantised), or a disk cache filled once; none: the method has no reference.",
    )
    reference_model: str | None = Field(
        None, description="Another model that serves as the reference."
    )
    sync_ref_model: bool = Field(
        False, description="Let the reference follow the policy (TR-DPO); keeps a copy."
    )
    ref_model_mixup_alpha: float = Field(
        0.6, gt=0, le=1, description="Share of the policy that a synchronisation mixes in."
    )
    ref_model_sync_steps: int = Field(512, ge=1, description="Synchronise every so many steps.")
    cache_dir: Path | None = Field(
        None,
        description="Folder of reference log-probs; default ~/.cache/penchant (PENCHANT_CACHE).",
    )


class LoraSection(Section):
    """LoRA"""

    lora_r: int = Field(16, ge=0, description="Rank of the adapter; 0 trains all weights.")
    lora_alpha: float = Field(32, gt=0, description="Updates are scaled by lora_alpha / lora_r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in front of the adapter.")
    lora_target_modules: CommaSeparated = Field(
        "all-linear",
        description="Layer names, comma-separated, a pattern of whole names (a regular expression, "
        "as '.*layers\\.[0-3]\\..*_proj'), or all-linear (without the head).",
    )
    lora_target_parameters: CommaSeparated = Field(
        "",
        description="Names of weights that no linear layer holds, comma-separated, as those of "
        "experts: mlp.experts.gate_up_proj,mlp.experts.down_proj.",
    )
    peft: Kwargs = Field(
        {},
        description="What else peft.LoraConfig takes, as use_dora=true,bias=all or JSON: "
        "use_rslora, init_lora_weights, modules_to_save, rank_pattern, trainable_token_indices ...",
    )
    merge: bool = Field(False, description="Also save the model with the adapter merged in.")

    @property
    def adapter(self) -> dict[str, Any]:
        """What `add_lora` is told of the adapter."""
        scale = {"r": self.lora_r, "alpha": self.lora_alpha, "dropout": self.lora_dropout}
        modules, parameters = self.lora_target_modules, self.lora_target_parameters
        targets = {"target_modules": modules, "target_parameters": parameters}
        return {**scale, **targets, "settings": self.peft}


class OptimizerSection(Section):
    """Optimization"""

    learning_rate: float | None = Field(
        None,
        gt=0,
        description="The peak learning rate; by default the method's own, for LoRA or for all "
        "weights.",
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the training data.")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many optimizer steps.")
    per_device_train_batch_size: int = Field(4, ge=1, description="Pairs per forward pass.")
    gradient_accumulation_steps: int = Field(4, ge=1, description="Forward passes per step.")
    max_tokens_per_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description="Fill forward passes by tokens: as many whole pairs as this many positions "
        "hold, padding included; a longer pair is a pass of its own. A step still has "
        "per_device_train_batch_size x gradient_accumulation_steps pairs, and its result is the "
        "same. auto: as many as memory is predicted to hold. Halved when memory runs out. "
        "Default: passes of a fixed number of pairs.",
    )
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
    ] = Field("linear", description="How the learning rate falls, by the names of transformers.")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps for warm-up.")
    optim: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "muon", "sgd"] = Field(
        "adamw",
        description="The optimizer. adamw_8bit (bitsandbytes) keeps moments in 8 bits; paged ones "
        "leave a full GPU for the host; adafactor keeps a row and a column of them; muon (of "
        "hidden matrices; AdamW trains the rest) keeps one; sgd none.",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="The optimizer's weight decay; decoupled in AdamW."
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first moment.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second moment.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    router_aux_loss_coef: float | None = Field(
        None,
        ge=0,
        description="Coefficient of the loss that balances a model's experts; 0 turns it off; "
        "default: the model's own.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="The precision of the arithmetic; auto: bf16 on CUDA that has it, else fp32.",
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="Recompute activations; auto: only when memory asks for it."
    )


class ProcessSection(Section):
    """Several processes"""

    sharding: Literal["auto", "off", "full", "hybrid"] = Field(
        "auto",
        description="Whether the processes divide the weights, gradients and moments among them "
        "(FSDP2): full, or hybrid, where those of each node do; off: each has all of them. auto: "
        "full where accelerate launch asks for FSDP.",
    )
    offload: bool = Field(
        False,
        description="With sharding: keep the parts of weights, gradients and moments in main "
        "memory, and make the optimizer's steps there.",
    )


class EvaluationSection(Section):
    """Evaluation and checkpoints"""

    per_device_eval_batch_size: int = Field(
        8, ge=1, description="Pairs per forward pass of an evaluation."
    )
    eval_steps: int | None = Field(
        None, ge=1, description="Evaluate every so many steps as well as before and after."
    )
    eval_on_start: bool = Field(True, description="Evaluate and sample before the first step too.")
    eval_samples: int = Field(
        3, ge=0, description="Held-out prompts that the model answers before and after."
    )
    max_new_tokens: int = Field(128, ge=1, description="The longest sampled answer, in tokens.")
    logging_steps: int = Field(1, ge=1, description="Write metrics every so many steps.")
    save_steps: int = Field(500, ge=1, description="Checkpoint every so many steps.")
    save_minutes: float = Field(
        10.0,
        ge=0,
        description="Also save a checkpoint when the last is so many minutes old; 0: never.",
    )
    load_best_model_at_end: bool = Field(
        False, description="Save the weights of the best evaluation, not of the last step."
    )
    save_total_limit: int = Field(2, ge=1, description="Newest checkpoints kept, beside the best.")


class GuardSection(Section):
    """Guards"""

    silence: CommaSeparated = Field(
        "", description="Ids of findings that are known and not to be reported, comma-separated."
    )
    on_finding: CommaSeparated = Field(
        "warn",
        description="What a finding during the run does: warn, adapt, rollback or stop; also by "
        "id, comma-separated: reward-hacking=adapt,collapse=rollback.",
    )
    monitor_steps: int | None = Field(
        None,
        ge=1,
        description="Let the policy answer held-out prompts every so many steps; default: about "
        "ten times a run, less often where that would cost more than monitor_share.",
    )
    monitor_share: float = Field(
        0.1, gt=0, le=1, description="Largest share of the run's time that monitors may take."
    )
    monitor_prompts: int = Field(
        16, ge=0, description="Held-out prompts that are answered each time; 0: no monitors."
    )
    monitor_length: int = Field(64, ge=1, description="Longest answer while monitoring, in tokens.")
    monitor_reward: str | None = Field(
        None,
        description="A reward that is not trained on, by which monitored answers are judged too: a "
        "reward model or package.module:function.",
    )


class Sections(
    RunSection,
    DataSection,
    ModelSection,
    LoraSection,
    OptimizerSection,
    ProcessSection,
    EvaluationSection,
    GuardSection,
):
    """All keys that do not belong to a method."""


SECTIONS: tuple[type[Section], ...] = (*Sections.__bases__[1:], RunSection)
"""As help lists them."""
