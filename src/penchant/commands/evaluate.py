"""`penchant.evaluate`: a model, a reward model or a run against held-out records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.commands.benchmark import ALL, Benchmark, rank_opened
from penchant.commands.opened import (
    Opened,
    load_model,
    off_is_start,
    open_model,
    plan,
    run_settings,
    tuned_from,
)
from penchant.core.errors import ConfigError
from penchant.core.evaluation import Evaluation
from penchant.core.machine import out_of_memory_explained
from penchant.core.screen import track
from penchant.models.locate import resolve
from penchant.models.reference import AdapterReference, Reference
from penchant.models.reference_copy import CopyReference
from penchant.models.scoring import Scorer
from penchant.objectives.base import Parts
from penchant.training.inputs import read_records, tokenise
from penchant.training.kind import kind_of
from penchant.training.reference_models import require_same_vocabulary

if TYPE_CHECKING:
    from penchant.data.batch import Group


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
            too, and a reward model the layouts of `penchant.benchmark`.
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


def evaluate_each(sources: Mapping[str, Any], **keys: Any) -> dict[str, Evaluation]:
    """As `measure_each`, without what is told of a reward model by subset."""
    measured = measure_each(sources, **keys)
    return {
        name: one.evaluation if isinstance(one, Benchmark) else one
        for name, one in measured.items()
    }


def measure_each(
    sources: Mapping[str, Any],
    *,
    model: str | Path,
    reference: str | Path | None = None,
    batch_size: int = 8,
    **keys: Any,
) -> Mapping[str, Evaluation | Benchmark]:
    """Evaluate one model on several sources, each apart, and on all of them together.

    Args:
        sources: what to read, by the name that its numbers get.
        model, reference, batch_size, keys: as for `evaluate`.

    Returns:
        By name; of more than one source also `ALL`, whose means are over the records of all. Of a
        reward model each is a `Benchmark`.

    Raises:
        UserError: as for `evaluate`.
    """
    opened = open_model(model, batch_size, keys)
    config = opened.config
    if config.spec.model == "score":
        if reference is not None:
            raise ConfigError(f"{model} is a reward model, which has no reference; drop reference")
        return rank_opened(opened, sources, batch_size)
    records = {name: read_records(config, data) for name, data in sources.items()}
    kind, tokeniser = kind_of(config.spec), opened.tokeniser()
    examples = {n: tokenise(kind, some, tokeniser, "held-out")[0] for n, some in records.items()}
    for some in examples.values():
        kind.require(config, some)
    together = [example for some in examples.values() for example in some]
    compares = config.spec.needs_reference or reference is not None
    start = _compared_with(opened, reference) if compares else None
    policy = opened.load(keep_adapter=True)
    scorer = kind.scorer(config, policy, opened.pad_token_id)
    groups = [example.group() for example in together[:2]]
    with opened.accelerator.autocast():
        plan(scorer, groups, config)
        compared = _reference(opened, start, scorer, groups) if compares else None
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


def _compared_with(opened: Opened, named: str | Path | None) -> str | None:
    """The resolved name of what was named, or else of what the run or the adapter started from.

    None: it is the model itself, with its adapter switched off.
    """
    named = named or run_settings(opened.name).get("reference_model")
    if named is None and off_is_start(opened.folder):
        return None
    start = named or tuned_from(opened.name, opened.folder)
    if start is None:
        raise ConfigError(f"{opened.name} says nothing about what it was tuned from; set reference")
    return resolve(str(start), opened.config.cache_dir)


def _reference(
    opened: Opened, start: str | None, scorer: Scorer, groups: Sequence[Group]
) -> Reference:
    """What `_compared_with` has named."""
    if start is None:
        return AdapterReference(scorer)
    other = load_model(start, opened.config, opened.accelerator)
    require_same_vocabulary(scorer.causal_model.config, other.config)
    twin = Scorer(other, scorer.pad_token_id)
    plan(twin, groups, opened.config)
    return CopyReference(twin)
