"""The user's mistakes, which end in one clear line instead of a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can correct: the message says what, what was got, and the fix."""


class ConfigError(UserError):
    """A key of the configuration is unknown or its value impossible."""


class ModelError(UserError):
    """A model or tokenizer cannot do what was asked of it."""


class TrainingError(UserError):
    """The run cannot go on: memory that ran out, an output folder that is taken."""


class RunFailedError(TrainingError):
    """Training itself failed, which every process of the run finds in the same step."""


class RunInterrupted(KeyboardInterrupt):
    """A run was asked to end and has saved a checkpoint; the message says how to go on."""


class RewardError(UserError):
    """A reward cannot be called as it is, or failed on a sample, which the message names."""
