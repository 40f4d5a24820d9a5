"""A model behind an OpenAI-compatible endpoint as a reward: it reads an answer and scores it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from penchant.core.asking import Usage
from penchant.core.judge import JudgeSettings, fill_rubric, read_rubric
from penchant.data.rows.readable import as_text
from penchant.rl.rewards.samples import MissingScoresError, Sample

RUBRIC = """Judge the answer to the request below. Consider whether it is right, helpful, \
complete, safe and no longer than it needs to be. Explain in two sentences, then end with a line \
of the form "Score: N" where N is a number from {low} (worst) to {high} (best).

Request:
{prompt}

Answer:
{completion}
"""
TRIAL = Sample("Say yes.", "Yes.", [], [], True, {}, "a trial")
NUMBER = r"(-?\d+(?:\.\d+)?)"
RANGE = r"-?\d+\s*(?:[-\u2013]|to)\s*-?\d+"
# The scale that a judge repeats before the colon, as in "Score (1-10): 8", holds no score.
SCALE = re.compile(
    rf"\s*(?:[(\[][^()\[\]\n]*{RANGE}[^()\[\]\n]*[)\]]|{RANGE})(?=\W{{0,6}}:)", re.IGNORECASE
)
SCORE = re.compile(rf"score\W{{0,6}}?{NUMBER}|\[\[{NUMBER}\]\]", re.IGNORECASE)


class JudgeReward:
    """Scores of a judge, within its scale.

    Args:
        settings: of the judge.
        name: by which metrics and messages call it.

    Raises:
        ConfigError: the endpoint cannot be reached, or the rubric has not both places.
    """

    def __init__(self, settings: JudgeSettings, name: str = "judge") -> None:
        self.settings, self.name = settings, name
        self._rubric = RUBRIC if settings.rubric is None else read_rubric(settings.rubric)
        self._low, self._high = settings.scale
        self.endpoint = settings.endpoint()

    @property
    def usage(self) -> Usage:
        """What the judge was asked so far."""
        return self.endpoint.usage

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample; what was judged before is not judged again.

        Raises:
            MissingScoresError: a sample has no score after all tries.
        """
        replies = self.endpoint.ask([self._chat(sample) for sample in samples], self._read)
        scores = [math.nan if one.value is None else one.value for one in replies]
        if reasons := {i: one.reason for i, one in enumerate(replies) if one.value is None}:
            raise MissingScoresError(scores, reasons)
        return scores

    def try_once(self) -> None:
        """Have one answer of no matter judged, before those that matter are made.

        Raises:
            ConfigError: the judge refuses every request, or states no score.
        """
        self.endpoint.try_once(self._chat(TRIAL), self._read)

    def _chat(self, sample: Sample) -> list[dict[str, str]]:
        values = {
            "prompt": as_text(sample.prompt),
            "completion": sample.completion,
            "low": f"{self._low:g}",
            "high": f"{self._high:g}",
        }
        return fill_rubric(self._rubric, values)

    def _read(self, text: str) -> float | None:
        """The last score that the text states, or None where there is none within the scale."""
        found = [one or other for one, other in SCORE.findall(SCALE.sub("", text))]
        if not found and re.fullmatch(rf"\s*{NUMBER}\s*", text):
            found = [text]
        score = float(found[-1]) if found else None
        return score if score is not None and self._low <= score <= self._high else None
