"""A reward adapter whose base names no pad token: where its scores are read elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import penchant
from penchant.models.load import load_tokenizer
from penchant.models.reward_scorer import RewardScorer
from penchant.models.score_model import load_score_model
from penchant.reporting.settings import how_to_load


def test_run_says_which_pad_token_gives_its_scores_elsewhere(
    tiny_keys: dict[str, Any],
    unpadded_model: Path,
    tmp_path: Path,
    tokenised: Any,
    load_saved: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without it transformers reads the score at another token, and refuses batches."""
    tokenizer = load_tokenizer(str(unpadded_model))
    result = penchant.train(
        "reward",
        output=tmp_path / "run",
        max_steps=2,
        **{**tiny_keys, "model": str(unpadded_model)},
    )
    printed = " ".join("".join(capsys.readouterr()).split())
    assert f"set model.config.pad_token_id = {tokenizer.pad_token_id}" in printed
    ours = load_score_model(str(result.model), dtype=torch.float32)
    ours.config.pad_token_id = tokenizer.pad_token_id
    scorer = RewardScorer(ours, tokenizer.pad_token_id)
    pair = tokenised(tiny_keys["data"], unpadded_model)[0]
    elsewhere = load_saved(result.model)
    elsewhere.config.pad_token_id = tokenizer.pad_token_id
    ids = [torch.tensor([[*pair.prompt, *side]]) for side in (pair.chosen, pair.rejected)]
    with torch.no_grad():
        scores = torch.cat([elsewhere(input_ids=one).logits.squeeze(-1) for one in ids])
        torch.testing.assert_close(scorer(scorer.batch([pair.group()])), scores)
        # As docs/rewards.md shows it: padded on the right, with a mask.
        longest = max(len(one[0]) for one in ids)
        rows = [one[0].tolist() for one in ids]
        padded = torch.tensor([r + [tokenizer.pad_token_id] * (longest - len(r)) for r in rows])
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
        batch = elsewhere(input_ids=padded, attention_mask=mask).logits.squeeze(-1)
        torch.testing.assert_close(batch, scores)
        automatic = "AutoModelForSequenceClassification"
        names = {**vars(peft), automatic: getattr(transformers, automatic)}
        for library in ("transformers", "PEFT"):
            loaded = eval(how_to_load(result.model)[library], names)
            loaded.config.pad_token_id = tokenizer.pad_token_id
            again = torch.cat([loaded(input_ids=one).logits.squeeze(-1) for one in ids])
            torch.testing.assert_close(again, scores)
