"""Which keys go with answers that a run samples itself."""

from __future__ import annotations

from typing import Any


def check_sampling(config: Any) -> None:
    """Refuse numbers of answers that do not divide, and lengths that do not add up.

    Args:
        config: a `RunConfig` of a method that samples its answers.

    Raises:
        ValueError: which, and what to set.
    """
    options: Any = config.options
    mini_batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if options.batch_size % mini_batch:
        raise ValueError(
            f"batch_size ({options.batch_size} sampled answers) must be a multiple of the "
            f"mini-batch ({mini_batch}: per_device_train_batch_size x "
            "gradient_accumulation_steps); change one of them"
        )
    if config.spec.needs(options).partners:
        if config.per_device_train_batch_size % 2:
            raise ValueError(
                f"{config.method} trains on pairs of answers, and per_device_train_batch_size "
                f"({config.per_device_train_batch_size}) would divide one; set an even number"
            )
        if config.max_tokens_per_batch is not None:
            raise ValueError(
                f"{config.method} trains on pairs of answers, which max_tokens_per_batch could "
                "divide; set per_device_train_batch_size instead"
            )
    if options.max_completion_length + (config.max_prompt_length or 1) > config.max_length:
        raise ValueError(
            f"max_completion_length ({options.max_completion_length}) and max_prompt_length "
            f"({config.max_prompt_length or 'at least 1'}) do not fit in max_length "
            f"({config.max_length}); raise it or lower one of them"
        )
