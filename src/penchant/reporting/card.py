"""The card of a saved model: what happened in its run, as Markdown with the hub's front matter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, Template

from penchant.methods import METHODS
from penchant.reporting.data import audit
from penchant.reporting.figures import final_figures
from penchant.reporting.reading import Run
from penchant.reporting.settings import changed, command, how_to_load, versions
from penchant.reporting.verdict import judge
from penchant.reporting.words import shown

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")
NUM_ANSWERS = 3
# What the lines that load a model call it: its place on the hub is not known yet.
CALLED = "owner/name"
# Of this machine, not of the model.
LOCAL = ("output", "cache_dir", "report_to", "data", "eval_data", "model")


def render_card(
    run: Run, *, folder: Path | None = None, name: str = CALLED, base: str | None = None
) -> str:
    """The card; folders of this machine are named without the path to them.

    Args:
        run: whose model it is.
        folder: with the model; default: the run's `model`.
        name: of the model on the hub.
        base: the hub's name of what an adapter stands on, where the run does not know it.
    """
    method = METHODS.get(run.method)
    folder = folder or run.path / "model"
    text = template("card.md.jinja", escaped=False).render(
        front=yaml.safe_dump(front_matter(run, folder, base), sort_keys=False, allow_unicode=True),
        name=_short(run.config.get("model", "")) or "model",
        method=run.method or "unknown",
        title=method.title if method else run.method,
        paper=method.facts.paper if method else "",
        data=", ".join(map(_short, listed(run.config.get("data", "")))),
        verdict=str(judge(run)),
        loading={
            library: _without_paths(line)
            for library, line in how_to_load(folder, name=name, base=base).items()
        },
        figures=[(name, values[0]) for name, values in final_figures([run])],
        audit=audit(run),
        findings=[one for one in run.findings if one.get("severity") in ("error", "warning")],
        answers=_answers(run),
        changed={key: value for key, value in changed(run).items() if key not in LOCAL},
        versions=versions(run),
        command=_without_paths(command(run)),
        shown=shown,
        cell=cell,
        fenced=fenced,
    )
    return text.encode("utf-8", "replace").decode()


@cache
def template(name: str, *, escaped: bool) -> Template:
    """One of this folder's templates; of HTML, what it is given is escaped."""
    environment = Environment(
        autoescape=escaped, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def front_matter(run: Run, folder: Path, base: str | None = None) -> dict[str, Any]:
    """What the hub reads; a base or data that only this machine has is left out."""
    adapter = (folder / "adapter_config.json").exists()
    method = METHODS.get(run.method)
    scores = method is not None and method.model == "score"
    values: dict[str, Any] = {}
    if is_hub_id(model := base or str(run.config.get("model", ""))):
        values["base_model"] = model
    if datasets := [
        name for name in map(str, listed(run.config.get("data", ""))) if is_hub_id(name)
    ]:
        values["datasets"] = datasets
    tags = ["penchant", run.method.replace("_", "-"), *(["lora"] if adapter else [])]
    return {
        **values,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if scores else "text-generation",
        "tags": [tag for tag in tags if tag],
    }


def is_hub_id(name: str) -> bool:
    """Whether a name could be an id of the hub: an owner and a name, no path or file."""
    if "/" not in name or name.endswith((".gguf", ".jsonl", ".json", ".csv", ".parquet", ".gz")):
        return False
    return HUB_ID.match(name) is not None and "--" not in name and ".." not in name


def cell(value: Any) -> str:
    """A value as a cell of a table, on one line, with nothing that Markdown or HTML would read."""
    text = re.sub(r"\s+", " ", shown(value))
    return re.sub(r"([\\|`*_\[\]<>])", r"\\\1", text)


def fenced(text: str) -> str:
    """A text between fences longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def listed(value: Any) -> list[Any]:
    """A key that holds one value or several, as several."""
    return value if isinstance(value, list) else [value]


def _short(value: Any) -> str:
    text = str(value)
    return text if is_hub_id(text) else text.rstrip("/").rpartition("/")[2]


def _without_paths(text: str) -> str:
    """Folders of this machine say nothing to others."""
    return re.sub(r"(?<=\s)'?/[^\s']*/([^\s/']+)'?", r"\1", text)


def _answers(run: Run) -> list[tuple[str, str]]:
    if not run.samples:
        return []
    from penchant.reporting.answers import SHOWN_CHARACTERS, prompt_text

    last = max(one["step"] for one in run.samples)
    answers: list[Mapping[str, Any]] = [one for one in run.samples if one["step"] == last]
    return [
        (prompt_text(one.get("prompt")), str(one.get("answer", ""))[:SHOWN_CHARACTERS])
        for one in answers[:NUM_ANSWERS]
    ]
