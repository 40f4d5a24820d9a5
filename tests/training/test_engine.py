"""The loop: the same step however it is divided."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch

from penchant.config.keys import load_config
from penchant.core.errors import TrainingError
from penchant.core.evaluation import Evaluation
from penchant.data.source import DatasetSource
from penchant.data.tokenise import TokenisedPair
from penchant.data.tokenised import TokenisedLabel
from penchant.methods import METHODS, Method
from penchant.models.load import load_causal_model
from penchant.models.reference_copy import frozen_copy
from penchant.models.reward_scorer import RewardScorer
from penchant.models.score_model import load_score_model
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.objectives.base import Parts
from penchant.training.accelerator import make_accelerator
from penchant.training.checkpoint_reading import read_part
from penchant.training.engine import Engine
from penchant.training.folder import RunDirectory, read_lines
from penchant.training.kind import kind_of
from penchant.training.step import make_step


def random_examples(count: int, method: Method) -> list[Any]:
    """Records of all lengths, so that micro-batches differ in tokens."""
    draw = random.Random(0)

    def ids(least: int, most: int) -> list[int]:
        return [draw.randrange(3, 259) for _ in range(draw.randint(least, most))]

    pairs = [TokenisedPair(ids(1, 20), ids(1, 20), ids(1, 20), f"row {i}") for i in range(count)]
    if method.data == "pairs":
        return pairs
    # Each behind its own prompt: what shares one is summed before Llama's norms round to fp32.
    return [TokenisedLabel(p.prompt, p.chosen, i % 3 > 0, p.where) for i, p in enumerate(pairs)]


def gradients(
    tiny_model_dir: Path,
    folder: Path,
    *,
    method: str,
    micro_batch_size: int,
    accumulation: int,
    options: Mapping[str, Any] = MappingProxyType({}),
    attention: str = "auto",
    fail: Callable[[Engine], object] = lambda engine: None,
) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, float]]]:
    """What reaches the optimizer in every step, in fp64, and the metrics.

    `fail` may make passes of the engine fail.
    """
    config = load_config(
        method,
        {
            "model": str(tiny_model_dir),
            "data": "pairs",
            "lora_r": 0,
            "learning_rate": 1e-3,
            "max_grad_norm": 1e9,
            "precision": "fp32",
            "lr_scheduler_type": "constant",
            "warmup_ratio": 0,
            **options,
        },
    )
    examples = random_examples(32 + 13, config.spec)  # an epoch's second step is an uneven one
    torch.manual_seed(0)  # of a new score head
    scored = config.spec.model == "score"
    load = load_score_model if scored else load_causal_model
    model: Any = load(str(tiny_model_dir), dtype=torch.float64)
    scorer = (RewardScorer if scored else Scorer)(model.requires_grad_(True), 0)
    groups = [example.group() for example in examples[:2]]
    plan = plan_scoring(scorer, groups, attention=attention, max_length=64)
    assert plan.packed == (attention == "auto")
    reference = frozen_copy(scorer) if config.spec.needs_reference else None
    kind = kind_of(config.spec)
    objective = kind.objective(Parts(scorer, reference, config.spec, config.options))
    source: DatasetSource[Any] = DatasetSource(
        examples,
        micro_batch_size=micro_batch_size,
        accumulation=accumulation,
        num_epochs=2,
        max_steps=None,
        shuffle=True,
        seed=0,
        budget=kind.budget(config, scorer.plan.layout),
    )
    run = RunDirectory(folder, {}, resume=False)
    step = make_step(
        config,
        make_accelerator("fp32"),
        scorer,
        objective,
        num_steps=source.num_steps,
        say=run.say,
    )
    engine = Engine(config=config, step=step, source=source, evaluate=None, run=run)
    steps: list[dict[str, torch.Tensor]] = []

    def note(*_: Any) -> None:
        assert all(p.grad is not None for p in step.parameters.values())
        steps.append({n: p.grad.clone() for n, p in step.parameters.items() if p.grad is not None})

    step.optimizer.optimizer.register_step_pre_hook(note)
    fail(engine)
    engine.fit()
    return steps, engine.run.read("metrics.jsonl")


def assert_same_steps(
    expected: list[dict[str, torch.Tensor]],
    found: list[dict[str, torch.Tensor]],
) -> None:
    assert len(expected) == len(found) == 4
    for one, other in zip(expected, found, strict=True):
        assert max(gradient.abs().max() for gradient in one.values()) > 1e-4
        for name in one:
            assert one[name].dtype == torch.float64
            torch.testing.assert_close(other[name], one[name], atol=1e-10, rtol=1e-9)


# What methods ask of a whole step, beside what they ask by default.
DEMANDS: list[tuple[str, dict[str, Any]]] = [
    ("dpo", {"ld_alpha": 0.3, "rpo_alpha": 0.5}),
    ("dpo", {"use_weighting": True, "rpo_alpha": 0.5}),
    ("aot", {"paired": False}),
    ("simpo", {"cpo_alpha": 1.0}),
    ("kto", {"undesirable_weight": 1.5}),
    ("kto", {"loss_type": "apo_zero_unpaired"}),
]


DIVISIONS = {"1x32": (32, 1, 1, 32), "8x4": (32, 1, 8, 4), "5 at a time": (30, 1, 5, 6)}


@pytest.mark.parametrize(
    ("method", "options", "divided"),
    [
        *((method, {}, divided) for method in ("dpo", "ipo", "kto", "reward", "aot")
          for divided in ("1x32", "8x4")),
        *((name, {}, "5 at a time") for name, method in METHODS.items() if not method.samples),
        *((*demand, "5 at a time") for demand in DEMANDS),
    ],
    ids=str,
)  # fmt: skip
def test_step_is_the_same_however_it_is_divided(
    tmp_path: Path, tiny_model_dir: Path, method: str, options: dict[str, Any], divided: str
) -> None:
    """The whole of it in one pass against several; the last step of an epoch is an uneven one."""
    *whole, micro_batch_size, accumulation = DIVISIONS[divided]
    (expected, told), (found, said) = (
        gradients(
            tiny_model_dir,
            tmp_path / f"{size}x{times}",
            method=method,
            options=options,
            micro_batch_size=size,
            accumulation=times,
        )
        for size, times in (whole, (micro_batch_size, accumulation))
    )
    assert_same_steps(expected, found)
    for one, other in zip(told, said, strict=True):
        # Labels of one prompt share its tokens only where they are in one pass.
        apart = {"tokens"} if METHODS[method].data == "labels" else set()
        for name in one.keys() - {"tokens_per_second", "memory_peak_bytes"} - apart:
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize(
    ("method", "attention"),
    [("dpo", "plain"), ("kto", "auto"), ("reward", "auto"), ("aot", "auto")],
)
def test_step_is_the_same_filled_by_tokens(
    tmp_path: Path, tiny_model_dir: Path, method: str, attention: str
) -> None:
    def steps(name: str, size: int, times: int, **options: Any) -> list[dict[str, torch.Tensor]]:
        keys = {"micro_batch_size": size, "accumulation": times, "options": options}
        return gradients(
            tiny_model_dir, tmp_path / name, method=method, attention=attention, **keys
        )[0]

    expected = steps("fixed", 32, 1)
    assert_same_steps(expected, steps("budget", 4, 8, max_tokens_per_batch=300))


class Exhausted:
    """Runs out of memory as a device does: in passes of more tokens than it holds.

    In a forward hook of a layer, or in a backward hook: then other layers' gradients are there.
    """

    def __init__(self, holds: int, *, backward: bool) -> None:
        self.holds, self.backward, self.failures = holds, backward, 0

    def __call__(self, engine: Engine) -> None:
        layer = engine.step.scorer.causal_model.model.layers[0].mlp
        if self.backward:
            layer.register_full_backward_hook(lambda module, grads, _: self.check(grads[0]))
        else:
            layer.register_forward_hook(lambda module, args, output: self.check(output))

    def check(self, states: torch.Tensor) -> None:
        if states.shape[:-1].numel() > self.holds:
            self.failures += 1
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")


@pytest.mark.parametrize(("method", "backward"), [("dpo", True), ("kto", False)])
def test_running_out_of_memory_halves_the_budget_and_loses_nothing_of_the_step(
    tmp_path: Path, tiny_model_dir: Path, method: str, backward: bool
) -> None:
    exhausted = Exhausted(150, backward=backward)
    keys: dict[str, Any] = {"method": method, "micro_batch_size": 32, "accumulation": 1}
    expected, _ = gradients(tiny_model_dir, tmp_path / "whole", **keys)
    found, metrics = gradients(
        tiny_model_dir,
        tmp_path / "budget",
        options={"max_tokens_per_batch": 400},
        fail=exhausted,
        **keys,
    )
    assert_same_steps(expected, found)
    assert [record["step"] for record in metrics] == [1, 2, 3, 4]
    said = read_lines(tmp_path / "budget" / "findings.jsonl")
    assert [finding["id"] for finding in said] == ["out-of-memory"] * exhausted.failures
    limits = [finding["evidence"]["max_tokens_per_batch"] for finding in said]
    assert exhausted.failures == 2 and limits[0] <= 200 and limits[1] <= 100


@pytest.mark.parametrize("budget", [None, 400])
def test_memory_that_holds_no_single_pair_ends_with_what_to_set(
    tmp_path: Path, tiny_model_dir: Path, budget: int | None
) -> None:
    message = "gradient_checkpointing on" if budget else r"set max_tokens_per_batch \d+ \(half"
    with pytest.raises(TrainingError, match=message):
        gradients(
            tiny_model_dir,
            tmp_path / "run",
            method="dpo",
            micro_batch_size=32,
            accumulation=1,
            options={"max_tokens_per_batch": budget},
            fail=Exhausted(2, backward=False),
        )


@pytest.mark.parametrize("save_steps", [500, 1], ids=["as the best", "also as one of all"])
def test_the_best_checkpoint_holds_what_was_evaluated_where_the_guard_goes_back(
    tmp_path: Path, tiny_model_dir: Path, save_steps: int
) -> None:
    evaluated: dict[int, dict[str, torch.Tensor]] = {}
    best: list[int | None] = []

    def watched(engine: Engine) -> None:
        parameters = engine.step.parameters

        def copied() -> dict[str, torch.Tensor]:
            return {name: p.detach().clone() for name, p in parameters.items()}

        start = copied()

        @torch.no_grad()
        def after(step: int, seconds: float) -> bool:
            for name, parameter in parameters.items() if step == 2 else ():
                parameter.copy_(start[name])
            best.append(engine.progress.best_step)
            return False

        def evaluate() -> Evaluation:
            evaluated[engine.progress.step] = copied()
            return Evaluation(num_examples=1, accuracy=float(engine.progress.step == 2))

        guard: Any = SimpleNamespace(stopped="", best_step=None, after=after, state=dict)
        guard.note = lambda record: None
        engine.guard, engine.evaluate = guard, evaluate

    options = {"eval_steps": 2, "eval_data": "pairs", "save_steps": save_steps}
    keys: dict[str, Any] = {"method": "dpo", "micro_batch_size": 32, "accumulation": 1}
    gradients(tiny_model_dir, tmp_path / "run", options=options, fail=watched, **keys)
    assert best[-1] == 2
    saved = read_part(tmp_path / "run" / "checkpoints", 2, "weights")
    assert saved.keys() == evaluated[2].keys()
    for name, weight in saved.items():
        assert torch.equal(weight, evaluated[2][name]), name
