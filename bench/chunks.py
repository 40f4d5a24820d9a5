"""What other fixed choices would save on this machine: chunks of the head, attention kernels.

python bench/chunks.py               the fused head of SmolLM2-135M at several sizes of a chunk
python bench/chunks.py --rounds 15   more of each

Every size takes its turn in every round, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from penchant.data.batch import Group
from penchant.models import vocabulary
from penchant.models.logprobs import completion_logprobs
from penchant.models.scoring import Scorer, ScoringPlan

VOCABULARY, WIDTH = 49_152, 576
SIZES = [1 << exponent for exponent in range(18, 25)]
ROWS = [256, 1024, 4096]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for tokens in (128, 1024):
        for trainable in (False, True):
            name = f"head, {tokens} tokens, {'trained' if trainable else 'frozen'}"
            say(name, "elements of a chunk", turns(
                {f"{size:,}": partial(head, tokens, trainable, size, 1024) for size in SIZES},
                options.rounds,
            ))  # fmt: skip
    say("head, 4096 tokens, frozen", "rows at once", turns(
        {f"{rows:,}": partial(head, 4096, False, 1 << 20, rows) for rows in ROWS}, 3
    ))  # fmt: skip
    scorers = {kernel: scorer(kernel) for kernel in ("sdpa", "flex")}
    say("scoring pass, 4 groups of 110 tokens", "attention", turns(
        {kernel: partial(attend, one) for kernel, one in scorers.items()}, options.rounds
    ))  # fmt: skip


def head(tokens: int, trainable: bool, elements: int, rows: int) -> None:
    """Forward and backward of the log-probs of so many tokens."""
    drawn = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=drawn).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=drawn).mul_(0.05).requires_grad_(trainable)
    targets = torch.randint(VOCABULARY, (tokens,), generator=drawn)
    vocabulary.CHUNK_ELEMENTS["cpu"], vocabulary.ROWS_AT_ONCE = elements, rows
    started = time.perf_counter()
    completion_logprobs(hidden, weight, targets).sum().backward()
    TIMES.append(time.perf_counter() - started)


TIMES: list[float] = []


def scorer(kernel: str) -> Scorer:
    """Two layers of SmolLM2-135M's shape, scoring with a kernel."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=WIDTH, intermediate_size=1536, num_hidden_layers=2,
        num_attention_heads=9, num_key_value_heads=3,
    )  # fmt: skip
    made = Scorer(LlamaForCausalLM(config), 0)
    made.use(ScoringPlan(packed=True, fused_head=True, kernel=kernel))
    return made


@torch.no_grad()  # FlexAttention has no backward pass on a CPU
def attend(made: Scorer) -> None:
    """One scoring pass."""
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (4, 110), generator=drawn).tolist()
    groups = [Group(row[:46], (row[46:78], row[78:])) for row in ids]
    started = time.perf_counter()
    made(made.batch(groups))
    TIMES.append(time.perf_counter() - started)


def turns(work: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece, one after the other in every round; the first warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, piece in work.items():
            piece()
            if number:
                seconds[name].append(TIMES.pop())
            TIMES.clear()
    return seconds


def say(title: str, what: str, seconds: dict[str, list[float]]) -> None:
    best = min(median(each) for each in seconds.values())
    print(f"{title}, by {what}:")
    for name, each in seconds.items():
        print(
            f"  {name:>12} {median(each):.3f} s ({median(each) / best:.2f} of the best)", flush=True
        )


if __name__ == "__main__":
    main()
