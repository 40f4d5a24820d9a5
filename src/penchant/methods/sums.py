"""Weighted sums of the losses of methods that learn from pairs: their options, and the sum."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from typing_extensions import Self

from penchant.methods.base import LossOutput, Method, MethodOptions, Needs, PairInputs


def parse_weights(value: Any) -> Any:
    """`dpo=1.0,sft=0.2` as a mapping; what is no text stays as it is.

    Raises:
        ValueError: a part is not of the form `method=weight`, or names a method again.
    """
    if not isinstance(value, str):
        return value
    weights = {}
    for part in value.split(","):
        name, equals, weight = map(str.strip, part.partition("="))
        if not equals:
            raise ValueError(f"{name!r} has no weight; write it as method=weight")
        if name in weights:
            raise ValueError(f"{name} is named twice; give it one weight")
        weights[name] = weight
    return weights


def _parse_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Term:
    """One loss of the sum."""

    method: Method
    options: MethodOptions
    weight: float


class SumOptions(MethodOptions):
    """Which losses are added, and their options."""

    losses: Annotated[dict[str, float], BeforeValidator(parse_weights)] = Field(
        {"dpo": 1.0}, min_length=1,
        description="Methods on pairs and their weights, such as dpo=0.8,sft=1.0; the first one's "
        "implicit rewards are reported.",
    )  # fmt: skip
    beta: float = Field(
        0.1, gt=0, description="Given to every loss that has a beta, where loss_options names none."
    )
    loss_options: Annotated[dict[str, dict[str, Any]], BeforeValidator(_parse_json)] = Field(
        {}, description="Options of single losses by method, such as {dpo: {label_smoothing: 0.1}}."
    )

    @model_validator(mode="after")
    def _losses_can_be_added(self) -> Self:
        for name, weight in self.losses.items():
            if weight <= 0:
                raise ValueError(f"losses: {name} has weight {weight}; give a weight above 0")
        for name in self.loss_options:
            if name not in self.losses:
                raise ValueError(
                    f"loss_options names {name}, which is not among the losses "
                    f"({', '.join(self.losses)}); add it there, or drop it here"
                )
        if len(_tail_weights(self)) > 1:
            raise ValueError("ld_alpha must be the same for all losses: they share their log-probs")
        return self

    @property
    def supervised_key(self) -> str:
        """As of other methods."""
        return "a weight of sft in losses"

    def reported_beta(self, method: Method) -> float | None:
        """That of the first loss, whose rewards are reported."""
        first = self.terms[0]
        return first.options.reported_beta(first.method)

    def with_beta(self, beta: float) -> Self:
        """The same with another `beta`; betas of single losses grow or shrink by as much."""
        share = beta / self.beta
        own = {name: dict(given) for name, given in self.loss_options.items()}
        for term in self.terms:
            if "beta" in (given := own.get(term.method.name, {})):
                given["beta"] = share * getattr(term.options, "beta")  # noqa: B009  # as it was read
        changed = self.model_copy(update={"beta": beta, "loss_options": own})
        changed.__dict__.pop("terms", None)  # a copy takes what was computed along
        return changed

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The losses with their options, in the order of `losses`.

        Raises:
            ValueError: one is no method on pairs under a language model, or its options are wrong.
        """
        return tuple(self._term(name, weight) for name, weight in self.losses.items())

    def _term(self, name: str, weight: float) -> Term:
        from penchant.methods import METHODS

        if name not in METHODS or not addable(METHODS[name]):
            known = ", ".join(other for other, method in METHODS.items() if addable(method))
            raise ValueError(f"losses: {name!r} cannot be added; known are {known}")
        method = METHODS[name]
        given = {"beta": self.beta} if "beta" in method.options.model_fields else {}
        try:
            options = method.options(**{**given, **self.loss_options.get(name, {})})
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, problem["loc"])) or "its options"
            raise ValueError(f"loss_options of {name}: {key}: {problem['msg']}") from None
        return Term(method, options, weight)


def addable(method: Method) -> bool:
    """Whether its loss can be a term of the sum."""
    return method.data == "pairs" and method.model == "language" and method.name != "mpo"


def summed_loss(inputs: PairInputs, options: SumOptions) -> LossOutput:
    """The weighted sum of several losses on the same pairs.

    Args:
        inputs: whatever the losses read, [pairs].
        options: `losses`, `beta`, `loss_options`.

    Returns:
        Losses, [pairs]; the metrics of the first, and each loss by itself as `loss/METHOD`.

    References:
        Eq. 1 of Wang et al. 2024 (https://arxiv.org/abs/2411.10442), for any losses and weights.
    """
    outputs = [term.method.loss(inputs, term.options) for term in options.terms]
    metrics = dict(outputs[0].metrics)
    for term, output in zip(options.terms, outputs, strict=True):
        metrics |= {name: v for name, v in output.metrics.items() if name not in metrics}
        metrics[f"loss/{term.method.name}"] = output.per_example.detach()
    total = outputs[0].per_example * options.terms[0].weight
    for term, output in zip(options.terms[1:], outputs[1:], strict=True):
        total = total + term.weight * output.per_example
    return LossOutput(total, metrics)


def summed_needs(options: SumOptions) -> Needs:
    """Whatever one of the losses needs."""
    asked = [(term.method, term.method.needs(term.options)) for term in options.terms]
    merged: dict[str, Any] = {
        field.name: any(getattr(needs, field.name) for _, needs in asked) for field in fields(Needs)
    }
    merged["reference"] = any(method.needs_reference and needs.reference for method, needs in asked)
    merged["tail_weight"] = min(_tail_weights(options), default=1.0)
    return Needs(**merged)


def _tail_weights(options: SumOptions) -> set[float]:
    """Those that the losses ask for; supervised learning always reads whole completions."""
    terms = [term for term in options.terms if term.method.name != "sft"]
    return {term.method.needs(term.options).tail_weight for term in terms}
