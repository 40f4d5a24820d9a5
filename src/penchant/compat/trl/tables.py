"""TRL's arguments without a key here: which change nothing, and why others cannot be had."""

from __future__ import annotations

from typing import Any

# Argument: the values that say what happens anyway, and why no other can be had.
Standing = dict[str, tuple[tuple[Any, ...], str]]

# Any value of these trains the same model: they are taken, and named in one line of the log.
WITHOUT_EFFECT = frozenset(
    {
        # How fast, and in how many processes
        *("dataset_num_proc", "dataloader_num_workers", "dataloader_pin_memory"),
        *("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_in_order"),
        *("dataloader_multiprocessing_context", "pad_to_multiple_of", "padding_free"),
        *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel"),
        *("liger_kernel_config", "tf32", "use_cache", "torch_empty_cache_steps"),
        *("activation_offloading", "gradient_checkpointing_kwargs", "use_logits_to_keep"),
        *("precompute_ref_batch_size", "eval_accumulation_steps", "half_precision_backend"),
        *("average_tokens_across_devices", "local_rank", "ddp_backend", "ddp_timeout"),
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
        *("ddp_static_graph", "debug"),
        # Names of columns, and what fills places that are never read
        *("remove_unused_columns", "label_names", "length_column_name", "label_pad_token_id"),
        *("padding_value", "include_for_metrics", "include_inputs_for_metrics"),
        *("batch_eval_metrics", "prediction_loss_only", "eval_do_concat_batches"),
        *("eval_use_gather_object", "do_train", "do_eval", "do_predict"),
        # What is shown and logged, and where it goes
        *("run_name", "project", "logging_dir", "logging_strategy", "logging_first_step"),
        *("logging_nan_inf_filter", "log_level", "log_level_replica", "log_on_each_node"),
        *("disable_tqdm", "include_num_input_tokens_seen", "include_tokens_per_second"),
        *("skip_memory_metrics",),
        # What is saved beside the weights; the hub's, which nothing is pushed to
        *("save_only_model", "save_safetensors", "save_on_each_node", "enable_jit_checkpoint"),
        *("restore_callback_states_from_checkpoint", "hub_token", "hub_private_repo"),
        *("hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
    }
)

STANDING: Standing = {
    # Lengths
    "max_completion_length": (
        (None,),
        "a completion has what the prompt leaves of max_length; set max_length and "
        "max_prompt_length",
    ),
    "truncation_mode": (
        ("keep_start",),
        "prompts are cut on the left and completions on the right; set max_prompt_length and "
        "max_length",
    ),
    # The model and its tokenizer
    "ref_model_init_kwargs": ((None,), "load the reference yourself and pass the object"),
    "pad_token": ((None,), "set tokenizer.pad_token"),
    "eos_token": ((None,), "set tokenizer.eos_token"),
    "chat_template_path": ((None,), "set tokenizer.chat_template"),
    "is_encoder_decoder": ((None, False), "only decoders are trained"),
    "model_adapter_name": ((None,), "pass peft_config: a fresh adapter is trained"),
    "ref_adapter_name": ((None,), "pass ref_model, or peft_config without it"),
    "force_use_ref_model": ((False,), "a ref_model that is passed is used; drop it"),
    # The reference
    "reference_free": (
        (False,),
        "without a reference this is CPOConfig with cpo_alpha=0.0 and the same loss_type",
    ),
    # The optimizer
    "optim_args": ((None,), "set adam_beta1, adam_beta2 and adam_epsilon"),
    "lr_scheduler_kwargs": ((None, {}), "schedules have no further settings; drop it"),
    "neftune_noise_alpha": ((None, 0, 0.0), "no noise is added to embeddings; drop it"),
    "label_smoothing_factor": ((0, 0.0), "set label_smoothing"),
    "optim_target_modules": ((None,), "no optimizer here projects gradients; drop it"),
    "activation_checkpointing": ((None,), "set gradient_checkpointing"),
    "activation_checkpointing_kwargs": ((None,), "set gradient_checkpointing"),
    "auto_find_batch_size": ((False,), "set per_device_train_batch_size"),
    "full_determinism": ((False,), "set seed"),
    "deepspeed": ((None,), "weights are divided by accelerate launch --use_fsdp alone; drop it"),
    "fsdp": ((None, "", []), "accelerate launch --use_fsdp divides the weights; drop it"),
    "fsdp_config": ((None, {}), "accelerate launch --use_fsdp has no further settings; drop it"),
    "accelerator_config": ((None, {}), "the launcher says how processes meet; drop it"),
    "parallelism_config": (
        (None,),
        "weights are divided by accelerate launch --use_fsdp alone; drop it",
    ),
    "bf16_full_eval": ((False,), "evaluation has training's precision; set bf16"),
    "fp16_full_eval": ((False,), "evaluation has training's precision; set fp16"),
    # Data
    "dataloader_drop_last": ((False,), "the last, smaller batch is trained on; drop it"),
    "data_seed": ((None,), "the order depends on seed; set that"),
    "group_by_length": ((False,), "packed batches waste nothing on padding; drop it"),
    # Logging, evaluation, saving
    "eval_delay": ((0,), "set eval_steps"),
    "resume_from_checkpoint": ((None, False), "call train(resume_from_checkpoint=True)"),
    "push_to_hub": ((False,), "save_model, then upload the folder"),
    "trackio_space_id": ((None,), "trackers write into output_dir; upload it yourself"),
    "trackio_bucket_id": ((None,), "trackers write into output_dir; upload it yourself"),
    "trackio_static_space_id": ((None,), "trackers write into output_dir; upload it yourself"),
    "ignore_data_skip": ((False,), "a resumed run goes on with the next batch; drop it"),
}

# The same of the trainers' own arguments.
TRAINER_STANDING: Standing = {
    "data_collator": ((None,), "batches are laid out by the engine; drop it"),
    "compute_metrics": ((None,), "trainer.evaluate() reports the method's metrics; drop it"),
    "preprocess_logits_for_metrics": ((None,), "metrics are the method's; drop it"),
    "callbacks": ((None, []), "the loop calls nothing back; read trainer.state.log_history"),
    "optimizers": ((None, (None, None)), "set optim, learning_rate and adam_*"),
    "optimizer_cls_and_kwargs": ((None,), "set optim, learning_rate and adam_*"),
    "model_init": ((None,), "pass model"),
    "formatting_func": ((None,), "give train_dataset prompt, chosen and rejected columns"),
    "ref_model": ((None,), "this method has no reference; drop it"),
}

# The same of the trainers whose model answers by itself.
ONLINE_WITHOUT_EFFECT = frozenset(
    {
        *("cast_lm_head_to_fp32", "cache_implementation", "ds3_gather_for_generation"),
        *("num_generations_eval", "log_completions", "num_completions_to_print"),
        *("log_unique_prompts", "log_multimodal", "vllm_model_impl"),
        # Of TRL's own server, which `vllm_mode` refuses.
        *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout"),
        *("vllm_group_port",),
    }
)
_OTHER_LOSS = "loss_type is one of grpo, dapo and dr_grpo; drop it"
_WEIGHTS = "importance weights are token_truncate or sequence_mask, with a largest one; drop it"
_NO_SCHEDULE = "entropy_coef is constant; set that"
ONLINE_STANDING: Standing = {
    "min_p": ((None, 0, 0.0), "set top_p or top_k"),
    "repetition_penalty": ((1, 1.0), "answers would come from another distribution; drop it"),
    "generation_kwargs": ((None, {}), "set temperature, top_p and top_k"),
    "transformers_continuous_batching_config": ((None, {}), "drop it"),
    "vllm_mode": (
        ("colocate",),
        "the server there is TRL's; vLLM's own serves `penchant train --generation vllm-server`",
    ),
    "vllm_structured_outputs_regex": ((None,), "answers are free; reward their form"),
    "delta": ((None,), "the ratio is clipped by epsilon and epsilon_high"),
    "sapo_temperature_neg": ((1.05,), _OTHER_LOSS),
    "sapo_temperature_pos": ((1.0,), _OTHER_LOSS),
    "vespo_k_pos": ((2.0,), _OTHER_LOSS),
    "vespo_lambda_pos": ((3.0,), _OTHER_LOSS),
    "vespo_k_neg": ((3.0,), _OTHER_LOSS),
    "vespo_lambda_neg": ((2.0,), _OTHER_LOSS),
    "top_entropy_quantile": ((1, 1.0), "every token is learned from; drop it"),
    "use_adaptive_entropy": ((False,), _NO_SCHEDULE),
    "entropy_coef_min": ((0, 0.0), _NO_SCHEDULE),
    "entropy_coef_max": ((1, 1.0), _NO_SCHEDULE),
    "entropy_coef_delta": ((0.005,), _NO_SCHEDULE),
    "entropy_target": ((0.2,), _NO_SCHEDULE),
    "max_tool_calling_iterations": ((None,), "answers call no tools; drop it"),
    "vllm_importance_sampling_clip_min": ((None,), _WEIGHTS),
    "vllm_importance_sampling_cap": ((None,), "set vllm_importance_sampling_clip_max"),
    "off_policy_mask_threshold": ((None,), "answers are left out by their weights; drop it"),
    "log_completions_hub_repo": ((None,), "rollouts.jsonl holds the answers; upload it yourself"),
}
ONLINE_TRAINER_STANDING: Standing = {
    "tools": ((None, []), "answers call no tools; drop it"),
    "rollout_func": ((None,), "the engine draws the answers; drop it"),
    "environment_factory": ((None,), "there are no environments; pass reward_funcs"),
}
