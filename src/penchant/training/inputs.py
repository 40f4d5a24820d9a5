"""What a run is given, read and tokenised: everything that needs no weight to be loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from penchant.core.errors import ConfigError, ModelError
from penchant.core.machine import default_cache_dir
from penchant.core.screen import track
from penchant.data.opening import Sources
from penchant.data.records import Data
from penchant.data.token_report import TokenReport
from penchant.data.tokenise import Tokeniser
from penchant.models.architecture import router_coefficient
from penchant.models.load import end_token_ids, load_tokenizer
from penchant.models.locate import is_adapter, resolve
from penchant.models.size import require_decoder, saved_generation, saved_settings
from penchant.training.kind import kind_of
from penchant.training.setup import Inputs, Record, RunData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from penchant.config.keys import RunConfig
    from penchant.training.kinds import Pairs

logger = logging.getLogger("penchant")

# Fewer records are tokenised in a few seconds.
CACHED_FROM = 2000


def read_run_data(config: RunConfig, data: Any, eval_data: Any) -> RunData:
    """Read and split; says what was read and left out."""
    source, records = _read(config, data)
    if eval_data is None:
        return divided(config, RunData(records, [], [source]))
    held_out, evaluation = _read(config, eval_data, "eval_split")
    return RunData(records, evaluation, [source, held_out])


def divided(config: RunConfig, whole: RunData) -> RunData:
    """Hold out what `train_fraction` leaves, as `seed` draws it."""
    if config.train_fraction is None:
        return whole
    from penchant.data.split import split_by_prompt

    train, evaluation = split_by_prompt(whole.train, config.train_fraction, config.seed)
    return RunData(train, evaluation, whole.sources)


def read_records(config: RunConfig, data: Any) -> Sequence[Record]:
    """The records of one source, of the kind that the method learns from."""
    return _read(config, data)[1]


def _read(
    config: RunConfig, data: Any, split_key: str = "split"
) -> tuple[Data[Any], Sequence[Record]]:
    """What a source holds, and its records with the options of the run's chat template."""
    split = getattr(config, split_key) or config.split
    sources = Sources.of(data, split, config.columns, split_key)
    sources = replace(sources, model=str(config.model or ""))
    source: Data[Any] = kind_of(config.spec).read(config, sources)
    logger.info("%s", source.summary())
    if not config.chat_template_kwargs:
        return source, source.records
    from penchant.data.rows.template import with_kwargs

    return source, with_kwargs(source.records, config.chat_template_kwargs)


def read_inputs(
    config: RunConfig,
    run_data: RunData,
    *,
    model: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reference: Any = None,
    rewards: Sequence[Any] | None = None,
    monitor_rewards: Sequence[Any] | None = None,
    num_processes: int = 1,
) -> Inputs:
    """Find what the configuration names and tokenise the records, before a weight is loaded.

    Args:
        config: of the run.
        run_data: as `read_run_data` returned it.
        model, tokenizer: in place of what `config.model` names.
        reference: likewise of `config.reference_model`.
        rewards: functions or names, in place of what the method's `reward` names.
        monitor_rewards: likewise, of what `monitor_reward` names.
        num_processes: of the run.

    Raises:
        UserError: something that the configuration names cannot serve.
    """
    kind = kind_of(config.spec)
    if config.optim != "adamw" or config.rounds_stochastically:
        from penchant.training.optimizers import require_optimizer

        require_optimizer(config, num_processes)
    rewards = kind.find_rewards(config, rewards, num_processes)
    monitor_rewards = _monitor_rewards(config) if monitor_rewards is None else monitor_rewards
    loaded = model is not None
    base = config.model if loaded else resolve(config.model, config.cache_dir)
    model = model or saved_model(config, base)
    settings = model.config
    require_decoder(settings, base)
    if not loaded:
        _require_named(config, base, settings)
    if config.quantization != "none" or getattr(settings, "quantization_config", None) is not None:
        from penchant.training.quantisable import require_quantisable

        require_quantisable(config, settings, base, loaded=loaded)
    router_coefficient(settings, config.router_aux_loss_coef, base)
    if config.reference_model and reference is None:
        from penchant.training.named import require_reference

        require_reference(config, settings)
    tokenizer = tokenizer or load_tokenizer(
        base, chat_template=config.chat_template, trust_remote_code=config.trust_remote_code
    )
    end_ids = end_token_ids(model)
    kind.require_others(config, tokenizer)
    tokeniser = make_tokeniser(config, tokenizer, end_ids)
    folder = (config.cache_dir or default_cache_dir()) / "tokens" if config.token_cache else None
    train_set, report = tokenise(kind, run_data.train, tokeniser, "training", folder)
    reports = {"training": report}
    eval_set: list[Any] = []
    if run_data.evaluation:
        eval_set, reports["held_out"] = tokenise(
            kind, run_data.evaluation, tokeniser, "held-out", folder
        )
    _require_embedded(base, tokenizer, settings, [*train_set, *eval_set])
    kind.require(config, train_set, rewards)
    if eval_set:
        kind.require(config, [*eval_set, *train_set], rewards)  # training data lend what these lack
    return Inputs(
        base, settings, tokenizer, end_ids, run_data, train_set, eval_set, reports, rewards,
        list(monitor_rewards),
    )  # fmt: skip


def _monitor_rewards(config: RunConfig) -> list[Any]:
    """What judges monitored answers, of models that give any."""
    if config.monitor_reward is None or config.spec.model == "score":
        return []
    from penchant.rl.rewards.make import find_rewards

    trusted = config.trust_remote_code
    return find_rewards([config.monitor_reward], trust_remote_code=trusted)


def saved_model(config: RunConfig, base: str) -> SimpleNamespace:
    """What stands for a model whose weights are not loaded: its settings and generation's."""
    generates = kind_of(config.spec).generates
    return SimpleNamespace(
        config=saved_settings(base, trust_remote_code=config.trust_remote_code),
        generation_config=saved_generation(base) if generates else None,
    )


def _require_named(config: RunConfig, base: str, settings: Any) -> None:
    """Refuse a model without a class for this kind, and layers that it does not have."""
    if is_adapter(Path(base)):
        from penchant.models.adapter_files import require_mergeable

        require_mergeable(base)
    find_class = kind_of(config.spec).find_class
    find_class(settings, base, config.trust_remote_code)
    named = config.lora_target_parameters or config.peft.get("modules_to_save")
    if config.lora_target_modules != "all-linear" or named:
        from penchant.training.named import require_layers

        require_layers(config, base, find_class)


def _require_embedded(
    base: str, tokenizer: PreTrainedTokenizerBase, settings: Any, examples: Sequence[Any]
) -> None:
    """Refuse tokens that the model has no embedding for."""
    vocabulary = getattr(settings.get_text_config(), "vocab_size", None)
    if is_adapter(Path(base)):
        from penchant.models.adapter_files import adapter_vocabulary

        vocabulary = adapter_vocabulary(base) or vocabulary
    if vocabulary is None:
        return
    groups = [example.group() for example in examples]
    used = {max(ids, default=0) for g in groups for ids in (g.prompt, *g.completions)}
    beyond = sorted(number for number in used if number >= vocabulary)
    if beyond:
        names = ", ".join(str(tokenizer.convert_ids_to_tokens(number)) for number in beyond[:5])
        raise ModelError(
            f"the data use tokens that the model has no embedding for: {names}, of a tokenizer "
            f"with {len(tokenizer)} tokens where the model has {vocabulary}; give the model and "
            f"the tokenizer that belong together, or resize the model first: "
            f"model.resize_token_embeddings({len(tokenizer)}), then save_pretrained"
        )


def make_tokeniser(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]
) -> Tokeniser:
    """The tokeniser of a run, with the model's own end tokens."""
    return Tokeniser(
        tokenizer,
        end_token_ids=end_ids,
        max_length=config.max_length,
        max_prompt_length=config.prompt_budget,
        # A reward model reads the score of a whole conversation, at its last token.
        loss_on_turns="all" if config.spec.model == "score" else config.loss_on_turns,
    )


def tokenise(
    kind: Pairs,
    records: Sequence[Record],
    tokeniser: Tokeniser,
    name: str,
    cache: Path | None = None,
) -> tuple[list[Any], TokenReport]:
    """Tokenise one side of the data and say what was cut or dropped.

    Token ids of large data are kept in the folder `cache`, if it is given.

    Raises:
        ConfigError: nothing is left.
    """
    if cache is None or len(records) < CACHED_FROM:
        examples, report = kind.tokenise(tokeniser, track(records, f"tokenising {name}"))
    else:
        from penchant.data.token_cache import cached

        examples, report = cached(cache, records, tokeniser, kind, name)
    logger.info("%s: %s", name, report.summary())
    if not examples:
        raise ConfigError(f"no {name} record is left after tokenising ({report.summary()})")
    return list(examples), report
