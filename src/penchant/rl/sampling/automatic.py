"""The engine that `generation: auto` takes: the first that answers, of those that could."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from penchant.core.team import ALONE, Team
from penchant.rl.sampling.base import Completion, Draw, Sampler

if TYPE_CHECKING:
    from penchant.methods.online import OnlineOptions

logger = logging.getLogger("penchant")


def engines_of(
    generation: str,
    device: str,
    *,
    num_processes: int = 1,
    quantised: bool = False,
    sharded: bool = False,
) -> list[str]:
    """Names of the engines that `generation` stands for, the first choice first.

    Args:
        generation: of the options: a name, or auto.
        device: where the policy is: cpu, cuda or mps.
        num_processes: of the run; vLLM in the process serves one.
        quantised: whether the policy stands on a base in codes, which vLLM would load in full.
        sharded: whether the processes divide the policy's weights among them.
    """
    if generation != "auto":
        return [generation]
    if device != "cuda" or sharded:
        return ["cached"]
    vllm = num_processes == 1 and not quantised and importlib.util.find_spec("vllm") is not None
    return [*(["vllm"] if vllm else []), "continuous", "static", "cached"]


class AutomaticSampler:
    """The first of several engines that answers; what the others said is logged.

    Args:
        candidates: names, each with what starts the engine, the first choice first.
        team: the processes of the run, which all sample, and take the same engine.
    """

    def __init__(
        self, candidates: Sequence[tuple[str, Callable[[], Sampler]]], team: Team = ALONE
    ) -> None:
        self._left = list(candidates)
        self.team = team
        self._started: Sampler | None = None
        self._answered = False

    @property
    def engine(self) -> str:
        """The name of the engine in use, or of the one that is tried next."""
        return self._left[0][0]

    @property
    def tells(self) -> bool:
        """Whether the engine in use can tell entropies and values of what it draws."""
        return getattr(self._started, "tells", False)

    def sync(self) -> None:
        """Hand on that the weights have changed; an engine that starts later gets them then."""
        if self._started is not None:
            self._started.sync()

    def sample(self, prompts: Sequence[list[int]], draw: Draw) -> list[list[Completion]]:
        """Answers of the first engine that gives any in each process; once it has, it stays."""
        while not self._answered:
            answers, failed = [], ""
            last = len(self._left) == 1
            try:
                answers = self._start().sample(prompts, draw)
            except Exception as error:
                if last:
                    raise
                failed = f"{type(error).__name__}: {error}"
            failures = [] if last else [one for one in self.team.gather(failed) if one]
            if not failures:
                logger.info("generation: auto is %s", self.engine)
                self._answered = True
                return answers
            self._started = None
            name = self._left.pop(0)[0]
            logger.warning(
                "generation: %s does not answer here (%s); %s does from here on. Set generation to "
                "the one that you want",
                name, failures[0], self.engine,
            )  # fmt: skip
        return self._start().sample(prompts, draw)

    def _start(self) -> Sampler:
        if self._started is None:
            self._started = self._left[0][1]()
            self._started.sync()
        return self._started


def as_drawn(options: OnlineOptions, sampler: object) -> OnlineOptions:
    """The options with the engine's name, where auto has chosen it: importance weights ask."""
    if not isinstance(sampler, AutomaticSampler):
        return options
    return options.model_copy(update={"generation": sampler.engine})


def engine_of(options: OnlineOptions, sampler: object) -> str:
    """The name of the engine that draws the answers."""
    if isinstance(sampler, AutomaticSampler):
        return sampler.engine
    # Where auto has no choice there is one engine, which is no AutomaticSampler.
    return "cached" if options.generation == "auto" else options.generation
