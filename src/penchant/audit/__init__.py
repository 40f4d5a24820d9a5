"""Find what is wrong with preference data, and drop it: `penchant.data.inspect` and `clean`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.core.commands import install
from penchant.core.errors import ConfigError
from penchant.core.outputs import require_writable
from penchant.data.opening import Sources

if TYPE_CHECKING:
    from penchant.audit.cleaning import Cleaning
    from penchant.audit.report import Report

__all__ = ["clean", "inspect"]


def inspect(
    data: Any,
    *,
    eval_data: Any = None,
    eval_split: str | None = None,
    model: str | Path | None = None,
    max_length: int = 1024,
    max_prompt_length: int | None = None,
    min_agreement: float = 0.6,
    noise_rate: float | None = None,
    sample: int = 10_000,
    html: str | Path | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    processes: int | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Look for faults in preference data, of any size.

    Args:
        data: as for training: a path, a hub id, a dataset, a list of rows, or a list of these,
            which are inspected as one.
        eval_data: as `data`; rows of `data` with its prompts are found.
        eval_split: of `eval_data`; by default `split`.
        model: whose tokenizer measures lengths; without one they are not measured in tokens.
        max_length, max_prompt_length: in tokens, of training; by default 1024, and half.
        min_agreement: pairs with a smaller share of the votes are low-agreement.
        noise_rate: the share of flipped labels, where you know it: the probe then names rows
            also where it could not tell how many there are.
        sample: records that language, tokens and the noise probe are measured on, at most.
        html: a file to write the report to, as one page; its folder is made.
        split: of sources that have several.
        columns: the data's own name of a column, by the name used here.
        processes: that read at once; default: one a core.
        chat_template: a Jinja file or chatml, in place of the model's template.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: an impossible argument, a page that cannot be written, data that cannot be read
            or hold no record.
    """
    require_libraries()
    _check(sample, min_agreement, noise_rate, max_length, max_prompt_length, processes)
    from penchant.audit.page import write_page
    from penchant.audit.report import make_report

    if html is not None:
        require_writable(Path(html), "html")
    sources = Sources.of(data, split, columns)
    report = make_report(
        sources,
        None if eval_data is None
        else Sources.of(eval_data, eval_split or split, columns, "eval_split"),
        model=model, max_length=max_length,
        max_prompt_length=max_prompt_length or max_length // 2, min_agreement=min_agreement,
        noise_rate=noise_rate, sample=sample, processes=processes,
        chat_template=chat_template, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    if html is not None:
        write_page(report, sources, Path(html))
    return report


def clean(
    data: Any,
    *,
    drop: Sequence[str],
    output: str | Path,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> Cleaning:
    """Write data without the rows of some findings; those go to a file beside it, with the reason.

    The rows that remain keep all their columns and their order.

    Args:
        data: as for `inspect`.
        drop: ids of findings, such as duplicates and contradictions.
        output: a new .jsonl, .jsonl.gz or .parquet file.
        split, columns: as for `inspect`; columns are written under their new names.
        options: of `inspect`; they decide what is found.

    Raises:
        UserError: as for `inspect`; a file exists; no finding of that id drops rows; no row is
            left.
    """
    require_libraries()
    from penchant.audit.cleaning import drop_rows, require_outputs

    if isinstance(drop, str) or not drop:
        raise ConfigError(f"drop must be a list of ids of findings, got {drop!r}; see inspect")
    require_outputs(Path(output))
    sources = Sources.of(data, split, columns)
    return drop_rows(inspect(sources, **options), sources, drop, Path(output))


def _check(
    sample: int,
    min_agreement: float,
    noise_rate: float | None,
    max_length: int,
    max_prompt_length: int | None,
    processes: int | None,
) -> None:
    bounds = {"sample": sample, "max_length": max_length, "max_prompt_length": max_prompt_length,
              "processes": processes}  # fmt: skip
    for name, value in bounds.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}; set {name}")
    if not 0 < min_agreement <= 1:
        raise ConfigError(
            f"min_agreement must be above 0 and at most 1, got {min_agreement:g}; set min_agreement"
        )
    if noise_rate is not None and not 0 <= noise_rate < 0.5:
        raise ConfigError(
            f"noise_rate must be at least 0 and below 0.5, got {noise_rate:g}; set noise_rate"
        )


LIBRARIES = {
    "loky": "loky",
    "numpy": "numpy",
    "py3langid": "py3langid",
    "rensa": "rensa",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
}


def require_libraries() -> None:
    """Refuse to start without what inspecting imports.

    Raises:
        ConfigError: a library is missing; the message names the extra.
    """
    missing = [package for module, package in LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(f"inspecting data needs {', '.join(missing)}; {install('data')}")
