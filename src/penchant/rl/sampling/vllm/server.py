"""Answers from a vLLM server: handed the weights as they change, waited for when it is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.core.errors import TrainingError
from penchant.core.http import HttpError
from penchant.core.team import ALONE, Team
from penchant.rl.sampling.base import Completion, Draw
from penchant.rl.sampling.vllm.control import START, Server
from penchant.rl.sampling.vllm.engine import request
from penchant.rl.sampling.vllm.weights import HandedWeights

if TYPE_CHECKING:
    from penchant.models.scoring import Scorer

logger = logging.getLogger("penchant")

LONGEST_WAIT = 10.0
"""Seconds between two looks at a server that is away."""
# Times that a server may fail while it says that it is well, before a run gives up.
FAILURES = 5


@dataclass
class VllmServerSampler:
    """Draws from a vLLM server.

    A server that goes away is waited for, gets the weights again, and is asked again: the same
    seeds give the same answers. After a restart it has other weights than those of the run, so that
    what it has answered since it was last seen with the run's own is not used: an adapter has a
    name that a new server does not know, and all weights have a label that is read before and
    after each batch.

    Args:
        server: that answers.
        weights: of the policy, which it is given as they change.
        end_token_ids: any of them ends an answer.
        side_by_side: answers asked for together.
        patience: seconds to wait for a server that is away.
    """

    server: Server
    weights: HandedWeights
    end_token_ids: Sequence[int]
    side_by_side: int = 32
    patience: float = 600.0
    _before: str | None = field(default=None, init=False)
    """The adapter of the version before, until it is unloaded."""

    @classmethod
    def start(
        cls,
        policy: Scorer,
        name: str,
        end_token_ids: Sequence[int],
        *,
        server: Server,
        folder: Path | None,
        side_by_side: int,
        patience: float,
        team: Team = ALONE,
    ) -> VllmServerSampler:
        """Draw from a server that has loaded the policy's model.

        Args:
            policy: with an adapter, or trained as a whole.
            name: the resolved name of its model.
            end_token_ids: any of them ends an answer.
            server: that answers.
            folder: that this machine and the server's both see; None: they are one.
            side_by_side: answers asked for together.
            patience: seconds to wait for a server that is away.
            team: the processes that share the server.

        Raises:
            ConfigError: an adapter's server has other weights than its model's, or all weights
                would not be taken.
        """
        weights = HandedWeights(policy, name, folder, team)
        if weights.rank is not None:
            server.require_base()
        elif policy.causal_model.config.get_text_config().tie_word_embeddings:
            server.require_fresh_heads()
        return cls(server, weights, end_token_ids, side_by_side, patience)

    def sync(self) -> None:
        """Hand the present weights over; those of the version before are forgotten."""
        self._before = self.weights.label if self.weights.version else None
        self.weights.write()
        if self.weights.team.leads:
            self._persist(self._hand_over)
        self.weights.team.wait()

    def sample(self, prompts: Sequence[list[int]], draw: Draw) -> list[list[Completion]]:
        answers: dict[int, list[Completion]] = {}
        requests = [
            request(draw, self.end_token_ids, number) | {"prompt": prompt, "return_token_ids": True}
            for prompt, number in zip(prompts, draw.numbers_of(prompts), strict=True)
        ]

        def ask() -> None:
            if self.weights.rank is None:
                answers.clear()
                self._require_own()
            self._ask_all(requests, answers)
            if self.weights.rank is None:
                self._require_own()

        self._persist(ask)
        return [answers[i] for i in range(len(prompts))]

    def _ask_all(
        self, requests: Sequence[dict[str, Any]], answers: dict[int, list[Completion]]
    ) -> None:
        """Fill in the answers that are missing; those that came before a failure are kept."""
        model = self.server.model if self.weights.rank is None else self.weights.label

        def ask(i: int) -> None:
            choices = self.server.complete({"model": model, **requests[i]})
            ordered = sorted(choices, key=lambda choice: choice["index"])
            answers[i] = [self._completion(choice) for choice in ordered]

        missing = [i for i in range(len(requests)) if i not in answers]
        at_once = max(1, self.side_by_side // requests[0]["n"]) if requests else 1
        with ThreadPoolExecutor(at_once) as pool:
            asked = [pool.submit(ask, i) for i in missing]
            try:
                for one in asked:
                    one.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _completion(self, choice: dict[str, Any]) -> Completion:
        ids = choice["token_ids"]
        logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
        assert len(ids) == len(logprobs)
        return Completion(ids, logprobs, ids[-1] in self.end_token_ids)

    def _hand_over(self) -> None:
        """Give the server the present version, if it has another."""
        folder, label, rank = str(self.weights.folder), self.weights.label, self.weights.rank
        if rank is None:
            if self.server.weights_label() != label:
                self.server.load_weights(label, folder)
            return
        if not self.server.has_adapter(label):
            self.server.load_adapter(label, folder, rank)
        if self._before is not None:
            self.server.unload_adapter(self._before)
            self._before = None

    def _require_own(self) -> None:
        """Notice a server that has been restarted: its weights are not those of the run.

        Raises:
            HttpError: one that passes once the weights were handed over again.
        """
        if (label := self.server.weights_label()) != self.weights.label:
            raise HttpError(f"the server has the weights {label}, not {self.weights.label}")

    def _persist(self, action: Any) -> None:
        """Do what needs the server until it is done.

        Raises:
            TrainingError: the server refuses, stays away, or fails again and again.
        """
        for _ in range(FAILURES):
            try:
                action()
            except HttpError as error:
                failed = error
            else:
                return
            lost = failed.status == 404 and self.weights.rank is not None
            if not failed.passing and not lost:
                raise TrainingError(f"{failed}; correct the request, or the server") from failed
            wait_for(self.server, self.patience, failed)
            if action != self._hand_over:
                self._persist(self._hand_over)
        raise TrainingError(
            f"the server failed {FAILURES} times, though it says that it is well; its log says "
            f"why. Last: {failed}"
        ) from failed


def wait_for(server: Server, patience: float, why: Exception) -> None:
    """Wait until a server answers.

    Args:
        server: that was away.
        patience: seconds to wait.
        why: what was noticed of it.

    Raises:
        TrainingError: it stays away.
    """
    started, pause = time.monotonic(), 0.5
    if server.answers():
        logger.warning("the vLLM server failed and is asked again: %s", why)
        time.sleep(pause)
        return
    logger.warning("%s. The run waits up to %.0f seconds for the server", why, patience)
    while not server.answers():
        if time.monotonic() - started > patience:
            raise TrainingError(
                f"the vLLM server stayed away for {patience:.0f} seconds ({why}); start it "
                f"({START}) and resume the run, or raise vllm_server_timeout"
            )
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_WAIT)
    waited = time.monotonic() - started
    logger.warning("the server answers again, after %.0f seconds; it gets the weights", waited)
