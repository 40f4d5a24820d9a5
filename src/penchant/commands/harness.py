"""Hand a saved model to lm-evaluation-harness, which knows hundreds of tasks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.commands.opened import Opened, open_model
from penchant.config.mistakes import nearest
from penchant.core.commands import install
from penchant.core.errors import ConfigError, ModelError
from penchant.models.adapter_files import adapter_base
from penchant.models.locate import is_adapter

if TYPE_CHECKING:
    from types import ModuleType

logger = logging.getLogger("penchant")

# The standard error of a metric has the same name, with this after the first part of it.
ERROR = "_stderr"
KEYS = ("dtype", "max_length", "trust_remote_code")
# What the harness calls the precisions of weights.
DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def run_tasks(
    *,
    model: str | Path,
    tasks: Sequence[str],
    num_fewshot: int | None = None,
    limit: float | None = None,
    include_path: str | Path | None = None,
    batch_size: int = 8,
    **keys: Any,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Evaluate a model on tasks of lm-evaluation-harness.

    The harness loads the saved weights itself, an adapter on its base, so that its numbers are
    those that anybody gets for the model. Chats are asked through the chat template, as the run was
    trained.

    Args:
        model: a run directory, a folder, a hub id, a .gguf file, or an adapter.
        tasks: names of tasks, groups or tags; `*` and `?` stand for anything.
        num_fewshot: examples in a prompt; default: each task's own.
        limit: questions of each task; below 1 a share of them.
        include_path: a folder with YAML files of further tasks.
        batch_size: sequences per forward pass.
        keys: `dtype`, `trust_remote_code`, `max_length` (default: what the model reads).

    Returns:
        For each task and group its metrics by name, with `value` and `error` (the standard error;
        None where the harness gives none).

    Raises:
        UserError: the harness is not installed, no such task, or a reward model.
    """
    if extra := keys.keys() - set(KEYS):
        raise ConfigError(
            f"the harness is given no {', '.join(sorted(extra))}; it takes {', '.join(KEYS)}"
        )
    harness = _harness()
    opened = open_model(model, batch_size, keys)
    if opened.config.spec.model == "score":
        raise ModelError(f"{model} is a reward model, which gives no answers; measure it on --data")
    manager = harness.tasks.TaskManager(include_path=None if include_path is None
                                        else str(include_path))  # fmt: skip
    found = harness.simple_evaluate(
        model="hf",
        model_args={**_arguments(opened), **{k: v for k, v in keys.items() if k == "max_length"}},
        tasks=_known(tasks, manager.all_tasks),
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        limit=limit if limit is None or limit < 1 else int(limit),
        device=str(opened.accelerator.device),
        apply_chat_template=opened.why_plain() is None,
        task_manager=manager,
        log_samples=False,
    )
    assert found is not None, "one process gets the results"
    return {task: _metrics(metrics) for task, metrics in found["results"].items()}


def _harness() -> ModuleType:
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as error:
        raise ConfigError(
            f"--tasks needs lm-evaluation-harness ({error}); {install('tasks')}"
        ) from error
    return lm_eval


def _arguments(opened: Opened) -> dict[str, Any]:
    """How the harness loads the saved weights and the tokenizer."""
    folder = Path(opened.folder)
    adapter = {"peft": opened.folder} if is_adapter(folder) else {}
    has_tokenizer = (folder / "tokenizer_config.json").exists()
    base = adapter_base(opened.folder) if adapter else opened.folder
    return {
        "pretrained": base,
        **adapter,
        "tokenizer": opened.folder if has_tokenizer else base,
        "dtype": DTYPES[opened.config.dtype],
        "trust_remote_code": opened.config.trust_remote_code,
    }


def _known(tasks: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names of tasks, with patterns filled in.

    Raises:
        ConfigError: there is no such task.
    """
    from fnmatch import filter as matching

    names: list[str] = []
    for task in tasks:
        found = [task] if task in known else matching(known, task)
        if not found:
            hint = nearest(task, known) if _is_near(task, known) else "see lm-eval ls tasks"
            raise ConfigError(f"lm-evaluation-harness has no task {task!r}; {hint}")
        names += [name for name in found if name not in names]
    return names


def _is_near(task: str, known: Sequence[str]) -> bool:
    """Whether a name is near enough to be named: all of them are some ten thousand."""
    from difflib import get_close_matches

    return bool(get_close_matches(task, known, n=1, cutoff=0.5))


def _metrics(found: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Values and standard errors; a metric is called as `acc,none`: its name and its filter."""
    metrics = {}
    for name, value in found.items():
        metric, _, filtered = name.partition(",")
        if metric.endswith(ERROR) or not isinstance(value, int | float) or not filtered:
            continue
        error: Any = found.get(f"{metric}{ERROR},{filtered}")
        called = metric if filtered == "none" else f"{metric} ({filtered})"
        known = isinstance(error, int | float)
        metrics[called] = {"value": float(value), "error": float(error) if known else None}
    return metrics
