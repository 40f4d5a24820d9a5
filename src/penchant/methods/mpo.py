"""Mixed Preference Optimization (Wang et al. 2024, https://arxiv.org/abs/2411.10442).

A weighted sum of the losses of any methods that learn from pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from penchant.methods.base import Facts, Method
from penchant.methods.sums import SumOptions, parse_weights, summed_loss, summed_needs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penchant.core.findings import Finding


class MPOOptions(SumOptions):
    """Options of MPO."""

    losses: Annotated[dict[str, float], BeforeValidator(parse_weights)] = Field(
        {"dpo": 0.8, "bco": 0.2, "sft": 1.0}, min_length=1,
        description="Methods on pairs and their weights, such as dpo=0.8,sft=1.0; the first one's "
        "implicit rewards are reported.",
    )  # fmt: skip


def mpo_warnings(examples: Sequence[Any], options: MPOOptions) -> list[Finding]:
    """What the losses find in the data, each by itself."""
    return [
        finding
        for term in options.terms
        for finding in term.method.warnings(examples, term.options)
    ]


MPO = Method(
    name="mpo",
    title="Mixed Preference Optimization",
    data="pairs",
    needs_reference=True,
    options=MPOOptions,
    loss=summed_loss,
    needs=summed_needs,
    warnings=mpo_warnings,
    facts=Facts(
        data="pairwise preferences",
        models_in_memory="2 (policy and reference); 1 with LoRA or cached reference",
        stability="as its losses; the supervised term keeps chosen completions likely",
        when="one loss alone leaves something out, such as the likelihood of the chosen answers",
        paper="https://arxiv.org/abs/2411.10442",
        learning_rate=1e-6,
        learning_rate_lora=5e-5,
        learning_rate_range=(5e-7, 5e-6),
        beta="0.1 usual",
        beta_range=(0.01, 0.5),
    ),
)
