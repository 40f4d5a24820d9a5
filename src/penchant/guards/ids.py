"""Every id that a finding may have, by which it is silenced; docs/guards.md explains each."""

from __future__ import annotations

import difflib

BEFORE = (
    "configuration", "data", "model", "reward", "output", "learning-rate", "beta", "beta-noise",
    "reward-epochs", "epochs", "warmup", "fp16-of-bf16", "dropout", "lora-dropout", "ties",
    "ties-left-out", "ambiguous-pairs", "contradictions", "label-noise", "length-bias",
    "shared-prompts", "near-prompts", "no-held-out", "few-records", "one-prompt", "refused-rows",
    "kto-imbalance", "prompts-cut", "answers-cut", "answer-room", "dropped-records", "context",
    "double-bos", "doubled-eos", "early-eos", "missing-eos", "pad-is-eos", "chat-as-text",
    "not-instruction-tuned", "second-reference", "reference-differs", "reward-normalization",
    "no-kl-penalty", "target-kl", "reward-setup", "memory",
)  # fmt: skip
DURING = (
    "reward-hacking", "drift", "no-learning", "collapse", "falling-chosen", "over-fitting",
    "reward-model-past-best", "value-loss-exploding", "clip-fraction-high", "loss-spike",
    "gradient-spike", "no-held-out-prompts", "monitor-too-dear", "monitor-failed",
    "detector-failed", "not-finite", "reward-constant", "nothing-left-to-learn", "reward-dropped",
    "reward-scale", "never-ends", "kl-negative", "sampling-mismatch",
)  # fmt: skip
IDS = (*BEFORE, *DURING)


def require_known(silence: str) -> None:
    """Refuse an id that no finding has: silencing it would do nothing.

    Args:
        silence: ids, comma-separated.

    Raises:
        ValueError: an unknown id; the nearest known ones are named.
    """
    for name in filter(None, (part.strip() for part in silence.split(","))):
        if name not in IDS:
            close = difflib.get_close_matches(name, IDS, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "docs/guards.md lists them"
            raise ValueError(f"silence: unknown finding {name!r}; {hint}")
