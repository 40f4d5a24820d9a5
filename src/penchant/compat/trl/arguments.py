"""Arguments of TRL that have no key here: which values change nothing, and why others cannot be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from penchant.core.errors import ConfigError

# Argument: the values that say what happens anyway, and why no other can be had.
Standing = dict[str, tuple[tuple[Any, ...], str]]

STANDING: Standing = {
    # Lengths
    "max_completion_length": (
        (None,),
        "a completion has what the prompt leaves of max_length; set max_length and "
        "max_prompt_length",
    ),
    "truncation_mode": (
        (),
        "prompts are cut on the left and completions on the right; set max_prompt_length and "
        "max_length",
    ),
    # The model and its tokenizer
    "model_init_kwargs": ((None,), "load the model yourself and pass the object"),
    "ref_model_init_kwargs": ((None,), "load the reference yourself and pass the object"),
    "pad_token": ((None,), "set tokenizer.pad_token"),
    "padding_value": ((None,), "set tokenizer.pad_token"),
    "label_pad_token_id": ((-100,), "labels are not padded; drop it"),
    "eos_token": ((None,), "set tokenizer.eos_token"),
    "chat_template_path": ((None,), "set tokenizer.chat_template"),
    "is_encoder_decoder": ((None, False), "only decoders are trained"),
    "model_adapter_name": ((None,), "pass peft_config: a fresh adapter is trained"),
    "ref_adapter_name": ((None,), "pass ref_model, or peft_config without it"),
    "force_use_ref_model": ((False,), "a ref_model that is passed is used; drop it"),
    "router_aux_loss_coef": ((None,), "no load-balancing loss is added; drop it"),
    # The reference
    "reference_free": (
        (False,),
        "without a reference this is CPOConfig with cpo_alpha=0.0 and the same loss_type",
    ),
    "precompute_ref_batch_size": (
        (None,),
        "the reference is scored in batches of per_device_eval_batch_size; set that",
    ),
    # The optimizer
    "optim": (("adamw_torch", "adamw_torch_fused"), "the optimizer is AdamW; drop it"),
    "optim_args": ((None,), "set adam_beta1, adam_beta2 and adam_epsilon"),
    "lr_scheduler_kwargs": ((None, {}), "schedules have no further settings; drop it"),
    "neftune_noise_alpha": ((None,), "no noise is added to embeddings; drop it"),
    "label_smoothing_factor": ((0, 0.0), "set label_smoothing"),
    "auto_find_batch_size": ((False,), "set per_device_train_batch_size"),
    "activation_offloading": ((False,), "set gradient_checkpointing"),
    "gradient_checkpointing_kwargs": (
        (None, {}, {"use_reentrant": False}),
        "checkpointing is not re-entrant; drop it",
    ),
    "torch_compile": ((False,), "kernels are Penchant's own; drop it"),
    "use_liger_kernel": ((False,), "kernels are Penchant's own; drop it"),
    "full_determinism": ((False,), "set seed"),
    "use_cpu": ((False,), "set the environment variable CUDA_VISIBLE_DEVICES to nothing"),
    "no_cuda": ((False,), "set the environment variable CUDA_VISIBLE_DEVICES to nothing"),
    "tf32": ((None,), "set torch.backends.cuda.matmul.allow_tf32"),
    "deepspeed": ((None,), "training is on one machine, by accelerate; drop it"),
    "fsdp": ((None, "", []), "training is on one machine, by accelerate; drop it"),
    "bf16_full_eval": ((False,), "evaluation has training's precision; set bf16"),
    "fp16_full_eval": ((False,), "evaluation has training's precision; set fp16"),
    # Data; that columns are left alone, and what is done in how many processes, changes no result
    "padding_free": ((True, False), "batches are packed where the model allows it; drop it"),
    "remove_unused_columns": ((True, False), "columns that are not known are not read; drop it"),
    "dataset_num_proc": ((None, 1), "data are tokenised in one process; drop it"),
    "dataloader_num_workers": ((0,), "batches are made in the training process; drop it"),
    "dataloader_drop_last": ((False,), "the last, smaller batch is trained on; drop it"),
    "data_seed": ((None,), "the order depends on seed; set that"),
    "group_by_length": ((False,), "packed batches waste nothing on padding; drop it"),
    # Logging, evaluation, saving
    "logging_strategy": (("steps",), "set logging_steps"),
    "logging_first_step": ((False,), "set logging_steps=1"),
    "logging_dir": ((None,), "trackers write into output_dir; drop it"),
    "run_name": ((None,), "a run is called by its output_dir; drop it"),
    "eval_delay": ((0,), "set eval_steps"),
    "metric_for_best_model": (
        (None, "eval_rewards/accuracies"),
        "the best evaluation is that of the highest held-out accuracy, then margin; drop it",
    ),
    "greater_is_better": (
        (None, True),
        "the best evaluation is that of the highest held-out accuracy, then margin; drop it",
    ),
    "overwrite_output_dir": (
        (False,),
        "a run never writes over another; choose another output_dir",
    ),
    "save_only_model": ((False,), "checkpoints hold what resuming needs; drop it"),
    "resume_from_checkpoint": ((None, False), "call train(resume_from_checkpoint=True)"),
    "push_to_hub": ((False,), "save_model, then upload the folder"),
}

# The same of the trainers' own arguments.
TRAINER_STANDING: Standing = {
    "data_collator": ((None,), "batches are laid out by the engine; drop it"),
    "compute_metrics": ((None,), "trainer.evaluate() reports the method's metrics; drop it"),
    "preprocess_logits_for_metrics": ((None,), "metrics are the method's; drop it"),
    "callbacks": ((None, []), "the loop calls nothing back; read trainer.state.log_history"),
    "optimizers": ((None, (None, None)), "the optimizer is AdamW; set learning_rate and adam_*"),
    "optimizer_cls_and_kwargs": ((None,), "the optimizer is AdamW; set learning_rate and adam_*"),
    "model_init": ((None,), "pass model"),
    "formatting_func": ((None,), "give train_dataset prompt, chosen and rejected columns"),
    "quantization_config": ((None,), "the model is trained as it is; drop it"),
    "ref_model": ((None,), "this method has no reference; drop it"),
}


def refuse_or_pass(name: str, value: Any, standing: Standing, known: Iterable[str]) -> None:
    """Accept a value that says what happens anyway.

    Args:
        name, value: of an argument that no key stands for.
        standing: the table that it may be in.
        known: the arguments that have keys, for a hint.

    Raises:
        ConfigError: the argument cannot have its effect here, or there is no such argument.
    """
    if name not in standing:
        raise ConfigError(_unknown(name, [*known, *standing]))
    accepted, why = standing[name]
    value = getattr(value, "value", value)  # transformers has enumerations for some
    if not any(type(value) is type(one) and value == one for one in accepted):
        raise ConfigError(f"{name}={value!r} cannot be had here: {why}")


def _unknown(name: str, known: list[str]) -> str:
    from dataclasses import fields

    from transformers import TrainingArguments

    if name in {field.name for field in fields(TrainingArguments)}:
        return f"{name} has no counterpart here; drop it"
    return f"unknown argument {name!r}; {nearest(name, known)}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at what may have been meant."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "see docs/compat-trl.md"
