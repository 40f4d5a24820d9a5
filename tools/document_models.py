"""Write the table of docs/models.md: every family that the tests hold, and how it is scored.

With --check it only says whether the page is stale, and exits 1 if it is.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import marked

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
MARKS = ("<!-- families: written by tools/document_models.py -->", "<!-- end families -->")
HEAD = ("Family", "Text model", "Path", "LoRA", "Sampler")
# Families that cannot be packed and shared, beside those of the tests.
APART = {"mamba": {}, "falcon": {"num_hidden_layers": 1}}


def stale() -> str:
    """The page as it ought to be; empty where it is so."""
    return marked.stale(PAGE, MARKS, table())


def table() -> str:
    """A row for every family in the tables of the tests."""
    sampled = _test("rl/sampling/test_sampler")
    compared = {"llama", *sampled.STATES, *sampled.WINDOWED}  # llama: the fixture `policy`
    rows: list[tuple[str, ...]] = [HEAD, ("---",) * len(HEAD)]
    for name, kind, settings, factory in _families():
        row = (name, *_described(kind, settings, factory))
        rows.append((*row, "compared" if kind in compared else "-"))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace("| --- ", "|---")


def _families() -> Iterator[tuple[str, str, dict[str, Any], Any]]:
    """What to call a family, its type in transformers, a tiny configuration and what makes it."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    base = _test("conftest")
    served, mixers = _test("models/test_scoring").SERVED, _test("models/test_mixers").STATEFUL
    families = _test("models/test_families").FAMILIES
    apart = APART | _test("models/test_path").UNSHARED
    own = {kind: {} for kind in [*served, *mixers]} | families | apart
    for kind in [*sorted(own.keys() - apart.keys()), *sorted(apart)]:
        settings = {**base.TINY, **base.FAMILIES.get(kind, {}), **own[kind]}
        yield f"`{kind}`", kind, settings, AutoModelForCausalLM
    for name, (kind, settings) in _test("models/test_architecture").FAMILIES.items():
        called = f"{name}, of images and text (`{kind}`)"
        yield called, kind, settings, AutoModelForImageTextToText


def _described(kind: str, settings: dict[str, Any], factory: Any) -> tuple[str, str, str]:
    """The class of the text model, the path, and what LoRA adapts."""
    import torch
    from transformers import AutoConfig

    from penchant.models.architecture import stateful_modules, text_backbone
    from penchant.models.lora import add_lora
    from penchant.models.path import layout

    config = AutoConfig.for_model(kind, **settings)
    with torch.device("meta"):
        model = factory.from_config(config)
    told, _, reason = layout(model).partition(": ")
    if not told.startswith("packed"):
        path = f"{_checked(factory.from_config(config))}: {reason}"
    elif mixers := Counter(type(module).__name__ for module in stateful_modules(model)):
        path = f"packed and shared, {', '.join(mixers)} apart"
    else:
        path = "packed and shared"
    kind_of_text = type(text_backbone(model)).__name__
    experts = any("experts" in n and p.dim() == 3 for n, p in model.named_parameters())
    adapted = add_lora(model, r=1, alpha=1, dropout=0.0, target_modules="all-linear")
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    if any(".experts." in name for name in trained):
        lora = "linear layers, experts, routers"
    else:
        lora = "linear layers; experts by name" if experts else "linear layers"
    return kind_of_text, path, lora


def _checked(model: Any) -> str:
    """What the self-check of a run chooses."""
    from penchant.data.batch import Group
    from penchant.models.scoring import Scorer
    from penchant.models.selfcheck import plan_scoring

    scorer = Scorer(model.eval(), 0)
    groups = [Group([1, 5, 6], ([7, 8, 2], [9, 2])), Group([1, 10], ([11, 12, 2], [13, 14, 15]))]
    plan = plan_scoring(scorer, groups, attention="auto", max_length=64)
    if plan.packed:
        raise ValueError(f"{model.config.model_type} is packed after all; take it out of APART")
    return "packed with repeated prompts" if plan.repeated else "padded"


def _test(name: str) -> Any:
    """A module of the tests."""
    file = ROOT / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"documented_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(marked.main(PAGE, stale()))
