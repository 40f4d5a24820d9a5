"""The engine that `generation: auto` takes: the first that answers, and what is said of others."""

from __future__ import annotations

import importlib.util
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from penchant.core.errors import ConfigError
from penchant.core.team import Team
from penchant.methods import METHODS
from penchant.models.policy import PolicyScorer
from penchant.rl.sampling.automatic import AutomaticSampler, as_drawn, engines_of
from penchant.rl.sampling.base import Draw, Sampling
from penchant.rl.sampling.sampler import CachedSampler
from penchant.rl.sampling.static import StaticSampler

PROMPTS = [[40, 41, 42, 43, 44], [50, 51]]
DRAW = Draw(Sampling(6, temperature=0), seed=0)


def test_on_a_gpu_an_engine_of_its_own_comes_before_the_cache_here() -> None:
    vllm = ["vllm"] if importlib.util.find_spec("vllm") else []
    assert engines_of("auto", "cuda") == [*vllm, "continuous", "static", "cached"]
    assert engines_of("auto", "cuda", num_processes=2) == ["continuous", "static", "cached"]
    assert engines_of("auto", "cuda", quantised=True) == ["continuous", "static", "cached"]
    assert engines_of("auto", "cuda", sharded=True) == ["cached"]
    assert engines_of("auto", "cpu") == engines_of("auto", "mps") == ["cached"]
    assert engines_of("static", "cpu") == ["static"]


def both(scorer: PolicyScorer) -> AutomaticSampler:
    return AutomaticSampler(
        [(name, partial(kind, scorer, [2]))
         for name, kind in (("static", StaticSampler), ("cached", CachedSampler))]
    )  # fmt: skip


def test_an_engine_that_does_not_answer_is_named_and_the_next_one_stays(
    make_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = PolicyScorer(make_model("mistral", sliding_window=4), 0)
    sampler = both(scorer)
    sampler.sync()
    assert sampler.engine == "static"
    expected = CachedSampler(scorer, [2]).sample(PROMPTS, DRAW)
    for _ in range(2):
        assert sampler.sample(PROMPTS, DRAW) == expected
        assert sampler.engine == "cached"
    assert caplog.text.count("static does not answer here (ConfigError: ") == 1
    assert "sliding_attention" in caplog.text


def test_an_engine_that_has_answered_is_not_left_when_it_fails(
    make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = PolicyScorer(make_model("llama"), 0)
    sampler = both(scorer)
    sampler.sample(PROMPTS, DRAW)
    assert sampler.engine == "static"

    def fails(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(scorer.causal_model, "forward", fails)
    with pytest.raises(torch.OutOfMemoryError):
        sampler.sample(PROMPTS, DRAW)
    assert sampler.engine == "static"


def test_the_last_engine_s_error_is_the_run_s(make_model: Any) -> None:
    scorer = PolicyScorer(make_model("mistral", sliding_window=4), 0)
    alone = AutomaticSampler([("static", partial(StaticSampler, scorer, [2]))])
    with pytest.raises(ConfigError, match="set generation to cached"):
        alone.sample(PROMPTS, DRAW)


def test_processes_take_one_engine(make_model: Any, tmp_path: Path) -> None:
    """The second cannot start the first choice."""
    context = multiprocessing.get_context("fork")
    scorer, meeting = PolicyScorer(make_model("llama"), 0), f"file://{tmp_path / 'meeting'}"

    def answer(rank: int, found: Any) -> None:
        torch.set_num_threads(1)  # the threads of the process that was forked are not there
        torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)

        def first(lacks: bool) -> Any:
            if lacks:
                raise RuntimeError("no such engine")
            return CachedSampler(scorer, [2])

        choices = [("first", partial(first, rank == 1)), ("second", partial(first, False))]
        sampler = AutomaticSampler(choices, Team(rank, 2))
        answers = [sampler.sample(PROMPTS, DRAW) for _ in range(2)]
        found.put((sampler.engine, answers[0] == answers[1]))

    found = context.Queue()
    team = [context.Process(target=answer, args=(rank, found)) for rank in range(2)]
    for one in team:
        one.start()
    assert [found.get(timeout=60) for _ in team] == [("second", True)] * 2
    for one in team:
        one.join()


def test_importance_weights_are_those_of_the_engine_that_was_taken() -> None:
    options: Any = METHODS["grpo"].options(reward="r")
    assert options.importance_level is None
    drawn: Any = as_drawn(options, AutomaticSampler([("vllm", lambda: None)]))  # type: ignore[list-item,return-value]
    assert drawn.importance_level == "sequence"
    other = as_drawn(options, AutomaticSampler([("static", lambda: None)]))  # type: ignore[list-item,return-value]
    assert other.importance_level is None
    assert as_drawn(options, object()) is options
