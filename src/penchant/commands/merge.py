"""`penchant merge`: a whole model of an adapter and its base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from penchant.core.errors import ConfigError, ModelError
from penchant.core.screen import setup_logging
from penchant.models.load import load_causal_model, load_tokenizer
from penchant.models.locate import is_adapter, resolve
from penchant.models.save import save_model
from penchant.models.score_model import is_score_model, load_score_model

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.training.setup import Setup

# What the merged model must say as the adapter does; any text will do.
TEXT = "The merged model is held against its adapter on these words: 1, 2, 3."


def merge(
    run: Path | str, output: Path | str | None = None, *, trust_remote_code: bool = False
) -> Path:
    """Add an adapter to its base and save the whole model, in fp32.

    Args:
        run: a run that trained an adapter, or a folder with an adapter.
        output: a new folder; default: `merged` in the run, or beside the adapter.
        trust_remote_code: run code that comes with the model.

    Returns:
        The folder.

    Raises:
        ModelError: there is no adapter, or the merged model disagrees with it.
        ConfigError: something is in the output's place.
    """
    setup_logging()
    folder = resolve(str(run))
    if not is_adapter(Path(folder)):
        raise ModelError(f"{run} holds no adapter to merge: its model is whole already")
    target = Path(folder).with_name("merged") if output is None else Path(output)
    if target.exists():
        raise ConfigError(f"{target} is there already; set --output to a new folder")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {target.absolute().parent}; set another --output")
    scores = is_score_model(folder)
    load = load_score_model if scores else load_causal_model
    model = load(
        folder, dtype=torch.float32, trust_remote_code=trust_remote_code, keep_adapter=True
    )
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    if scores:
        model.config.pad_token_id = tokenizer.pad_token_id  # the last token is found by it
    save_model(model, tokenizer, target, merged=True, records=[tokenizer(TEXT).input_ids])
    return target


def merge_beside(config: RunConfig, run: Path, setup: Setup, records: list[list[int]]) -> None:
    """Save the model of a run with its adapter merged in, in the run's folder.

    Args:
        config, setup: of the run.
        run: its folder, in which the adapter is saved already.
        records: texts as token ids, on which the merged model is held against the adapter.
    """
    folder = run / "merged"
    if not setup.scorer.is_sharded:
        model, tokenizer = setup.scorer.model, setup.tokenizer
        save_model(model, tokenizer, folder, merged=True, records=records)
        return
    shutil.rmtree(folder, ignore_errors=True)
    merge(run, trust_remote_code=config.trust_remote_code)  # no process has all weights to add to
