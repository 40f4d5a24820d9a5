"""Every method finds the kind of data that it learns from."""

from __future__ import annotations

from penchant.methods import METHODS
from penchant.training.kind import kind_of
from penchant.training.kind_labels import Labels
from penchant.training.kind_scores import Scores
from penchant.training.kinds import Pairs
from penchant.training.rollouts import Prompts


def test_every_method_has_the_kind_of_its_data_and_model() -> None:
    kinds = {"pairs": Pairs, "labels": Labels, "prompts": Prompts}
    for name, method in METHODS.items():
        expected = Scores if method.model == "score" else kinds[method.data]
        assert type(kind_of(method)) is expected, name
