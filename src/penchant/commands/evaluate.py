"""`penchant.evaluate`: a model, a reward model or a run against held-out records."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from peft import PeftModel

from penchant.config.keys import RunConfig, load_config
from penchant.core.errors import ConfigError
from penchant.core.evaluation import Evaluation
from penchant.core.machine import out_of_memory_explained, resolve_precision
from penchant.core.screen import setup_logging, track
from penchant.data.batch import Group
from penchant.methods import METHODS
from penchant.models.load import DTYPES, end_token_ids, load_tokenizer
from penchant.models.locate import resolve
from penchant.models.memory import is_quantised
from penchant.models.reference import AdapterReference, Reference
from penchant.models.reference_copy import CopyReference
from penchant.models.score_model import is_score_model
from penchant.models.scoring import Scorer
from penchant.models.selfcheck import plan_scoring
from penchant.objectives.base import Parts
from penchant.training.accelerator import make_accelerator
from penchant.training.inputs import (
    make_tokeniser,
    read_records,
    tokenise,
)
from penchant.training.kind import kind_of
from penchant.training.kinds import quantization_of
from penchant.training.reference_models import require_same_vocabulary

logger = logging.getLogger("penchant")

# The name of the numbers over several sources.
ALL = "all"
# What an evaluation takes from the run it evaluates.
RUN_KEYS = (
    *("max_length", "max_prompt_length", "chat_template", "chat_template_kwargs"),
    *("loss_on_turns", "trust_remote_code", "quantization"),
)


def evaluate(
    *,
    model: str | Path,
    data: Any,
    reference: str | Path | None = None,
    batch_size: int = 8,
    **keys: Any,
) -> Evaluation:
    """Held-out accuracy, margin, log-probs and KL; of a reward model accuracy and calibration.

    Args:
        model: a run directory, a folder, a hub id, a .gguf file, or an adapter.
        data: held-out records, in any form that training reads; a method for labels takes pairs
            too.
        reference: the model it is compared with; default: what the run or adapter started from.
        batch_size: records per forward pass.
        keys: `method`, `max_length`, `max_prompt_length`, `chat_template`, `chat_template_kwargs`,
            `attention`, `dtype`, `precision`, `quantization`, `strict`, `trust_remote_code`, or an
            option of the method (`beta`); default: the run's own.

    Raises:
        UserError: a wrong key, bad data, no reference to compare with.
    """
    keys |= {"model": model, "reference": reference, "batch_size": batch_size}
    return evaluate_each({"": data}, **keys)[""]


def evaluate_each(
    sources: Mapping[str, Any],
    *,
    model: str | Path,
    reference: str | Path | None = None,
    batch_size: int = 8,
    **keys: Any,
) -> dict[str, Evaluation]:
    """Evaluate one model on several sources, each apart, and on all of them together.

    Args:
        sources: what to read, by the name that its numbers get.
        model, reference, batch_size, keys: as for `evaluate`.

    Returns:
        By name; of more than one source also `ALL`, whose means are over the records of all.

    Raises:
        UserError: as for `evaluate`.
    """
    setup_logging()
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}; set batch_size")
    folder = resolve(str(model))
    config = config_of(Path(model), folder, {**keys, "model": str(model), "data": "evaluation"})
    accelerator = make_accelerator(config.precision)
    records = {name: read_records(config, data) for name, data in sources.items()}
    tokenizer = load_tokenizer(
        folder, chat_template=config.chat_template, trust_remote_code=config.trust_remote_code
    )
    policy = load_model(folder, config, accelerator, keep_adapter=True)
    kind = kind_of(config.spec)
    tokeniser = make_tokeniser(config, tokenizer, end_token_ids(policy))
    examples = {n: tokenise(kind, some, tokeniser, "held-out")[0] for n, some in records.items()}
    for some in examples.values():
        kind.require(config, some)
    together = [example for some in examples.values() for example in some]
    scorer = kind.scorer(config, policy, int(tokenizer.pad_token_id))
    groups = [example.group() for example in together[:2]]
    with accelerator.autocast():
        _plan(scorer, groups, config)
        compared = None
        if config.spec.needs_reference or (config.spec.model == "language" and reference):
            compared = _compared_with(scorer, Path(model), reference, groups, config, accelerator)
        parts = Parts(scorer, compared, config.spec, config.options, max_length=config.max_length)
        objective = kind.objective(parts)
        # Not a mean of means: rankings within a prompt, calibration and KL per token are none.
        if len(examples) > 1:
            examples[ALL] = together
        with out_of_memory_explained("records were evaluated", "set a lower batch_size"):
            return {
                name: objective.evaluate(some, batch_size=batch_size, progress=track)
                for name, some in examples.items()
            }


def load_model(
    folder: str, config: RunConfig, accelerator: Accelerator, *, keep_adapter: bool = False
) -> Any:
    """The model of a resolved name, on the device; an adapter can be switched off if it is kept."""
    precision = resolve_precision(config.precision, accelerator.device)
    model: Any = type(kind_of(config.spec)).load_model(
        folder,
        dtype=DTYPES[precision if config.dtype == "auto" else config.dtype],
        trust_remote_code=config.trust_remote_code,
        keep_adapter=keep_adapter,
        # What a policy is compared with is as it was saved.
        quantization=quantization_of(config, precision, accelerator.device)
        if keep_adapter
        else None,
    )
    if is_quantised(model):
        from penchant.models.quantised import compute_in

        compute_in(model, DTYPES[precision])
    return model.to(accelerator.device)


def _plan(scorer: Scorer, groups: Sequence[Group], config: RunConfig) -> None:
    plan_scoring(scorer, groups, attention=config.attention, max_length=config.max_length)


def _compared_with(
    scorer: Scorer,
    model: Path,
    named: str | Path | None,
    groups: Sequence[Group],
    config: RunConfig,
    accelerator: Accelerator,
) -> Reference:
    """The model that was named, or what the run or the adapter started from."""
    settings = run_settings(model)
    named = named or settings.get("reference_model")
    if isinstance(scorer.model, PeftModel) and named is None:
        return AdapterReference(scorer)
    start = named or settings.get("model")
    if start is None:
        raise ConfigError(f"{model} says nothing about what it was tuned from; set reference")
    other = load_model(resolve(str(start), config.cache_dir), config, accelerator)
    require_same_vocabulary(scorer.causal_model.config, other.config)
    twin = Scorer(other, scorer.pad_token_id)
    _plan(twin, groups, config)
    return CopyReference(twin)


def run_settings(model: Path) -> dict[str, Any]:
    """The keys of a run directory; none of any other folder."""
    file = model / "config.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}


def config_of(model: Path, folder: str, keys: dict[str, Any]) -> RunConfig:
    """The run's own settings where there is a run, under what the caller set."""
    settings = run_settings(model)
    given = {k: v for k, v in keys.items() if v is not None}
    guess = "reward" if is_score_model(folder) else "dpo"
    method = given.pop("method", None) or settings.get("method", guess)
    if method in METHODS and METHODS[method].samples:
        method = guess  # what a policy that was sampled from makes of pairs: its implicit rewards
    # Another method's options may have the same names and mean something else.
    same = method in METHODS and method == settings.get("method")
    options = METHODS[method].options.model_fields if same else {}
    own = {k: v for k, v in settings.items() if k in options or k in RUN_KEYS}
    unpair = {"unpair": True} if method in METHODS and METHODS[method].data == "labels" else {}
    return load_config(method, {**own, **unpair, **given})
