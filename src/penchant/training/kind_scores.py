"""What a run does whose method trains a reward model on pairs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.core.atomic import write_atomically
from penchant.core.strict_json import to_json
from penchant.models.locate import is_adapter
from penchant.models.reward_scorer import RewardScorer
from penchant.models.score_model import load_score_model, score_class
from penchant.objectives.scores import STATISTICS, ScoreObjective, score_statistics
from penchant.training.kinds import Pairs

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.models.scoring import Scorer
    from penchant.objectives.base import Objective, Parts
    from penchant.training.setup import Setup

logger = logging.getLogger("penchant")


class Scores(Pairs):
    """Two completions of one prompt, under a reward model."""

    load_model = staticmethod(load_score_model)
    find_class = staticmethod(score_class)
    task_type = "SEQ_CLS"
    generates = False

    def scorer(
        self, config: RunConfig, model: Any, pad_token_id: int, critic: Any = None
    ) -> Scorer:
        model.config.pad_token_id = pad_token_id  # transformers finds the last token by it
        return RewardScorer(model, pad_token_id)

    def objective(self, parts: Parts, setup: Setup | None = None) -> Objective:
        return ScoreObjective(parts)

    def save_beside(
        self, config: RunConfig, setup: Setup, objective: Objective, folder: Path
    ) -> None:
        """Save the statistics of its scores, by which a reward model is normalised."""
        assert isinstance(objective, ScoreObjective)
        statistics = score_statistics(objective, setup.train_set, config)
        if not objective.parts.team.leads:
            return
        write_atomically(folder / STATISTICS, to_json(statistics, indent=2))
        pad = setup.scorer.pad_token_id
        saved = getattr(setup.settings.get_text_config(), "pad_token_id", None)
        if pad != saved and config.lora_r and not is_adapter(Path(setup.base)):
            logger.warning(
                "the base has pad_token_id %s, and an adapter carries no other: set "
                "model.config.pad_token_id = %d once the adapter is loaded elsewhere, or its "
                "scores are read at another token; merge: true also saves a model that has it",
                saved,
                pad,
            )
