"""What each way to multiply matrices takes on this CPU: the same passes with every way, in turn.

python bench/products.py               training pass, scoring, sampling; SmolLM2-135M in fp32
python bench/products.py --rounds 15   more of each
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from compare import demo_model
from penchant.data.batch import Group
from penchant.models import products
from penchant.models.load import load_causal_model
from penchant.models.lora import add_lora
from penchant.models.policy import PolicyScorer
from penchant.models.scoring import ScoringPlan
from penchant.rl.sampling.base import Draw, Sampling
from penchant.rl.sampling.sampler import CachedSampler

PROMPT, COMPLETION = 45, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, as in the demo")
    options = parser.parse_args()
    if not products.has_onednn():
        raise SystemExit("these kernels are torch's on x86; this machine has none")
    scorer = policy(options.model or demo_model())
    choice = products.measure()
    for name, work in pieces(scorer).items():
        seconds = alternate(work, options.rounds, choice)
        print(f"{name:26}", ", ".join(told(seconds)), flush=True)
    print(f"chosen by the probe: {choice}")


def told(seconds: dict[str, list[float]]) -> list[str]:
    """The median of each way, and its speed beside MKL's."""
    mkl = median(seconds["MKL"])
    return [f"{way} {median(s):.3f} s ({mkl / median(s):.2f}x)" for way, s in seconds.items()]


def policy(model: str) -> PolicyScorer:
    """LoRA of rank 16 on the attention projections."""
    modules = "q_proj,k_proj,v_proj,o_proj"
    loaded = load_causal_model(model, dtype=torch.float32)
    scorer = PolicyScorer(add_lora(loaded, r=16, alpha=32, dropout=0, target_modules=modules), 0)
    scorer.use(ScoringPlan(packed=True, fused_head=True, kernel="sdpa"))
    return scorer.train()


def pieces(scorer: PolicyScorer) -> dict[str, Callable[[], None]]:
    """What a run does most: a training pass, scoring, a dozen tokens of sampling."""
    drawn = torch.Generator().manual_seed(0)
    groups = [group(drawn) for _ in range(16)]
    sampler = CachedSampler(scorer, [2], batch_size=16)
    prompts = [g.prompt for g in groups]

    def train() -> None:
        scorer(scorer.batch(groups[:2]), policy=True).logprobs.sum().backward()

    @torch.no_grad()
    def score() -> None:
        scorer(scorer.batch(groups[:4]), policy=True)

    def sample() -> None:
        sampler.sample(prompts, Draw(Sampling(12), seed=0))

    return {
        "training pass, 2 answers": train,
        "scoring, 4 answers": score,
        "12 tokens of 16 answers": sample,
    }


def group(drawn: torch.Generator) -> Group:
    def ids(length: int) -> list[int]:
        return torch.randint(5, 40_000, (length,), generator=drawn).tolist()

    return Group(ids(PROMPT), (ids(COMPLETION),))


def alternate(
    work: Callable[[], None], rounds: int, choice: dict[str, str]
) -> dict[str, list[float]]:
    """Seconds of every round, by the way that multiplies; `chosen` is what the probe says."""
    choices = {**{way: dict.fromkeys(choice, way) for way in products.WAYS}, "chosen": choice}
    seconds: dict[str, list[float]] = {name: [] for name in choices}
    for turn in range(rounds + 1):
        for name, ways in choices.items():
            products._measured.update(ways)
            start = time.perf_counter()
            work()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
