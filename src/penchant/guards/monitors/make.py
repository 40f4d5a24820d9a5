"""What watches a run, made from its configuration and what is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penchant.core.findings import Finding
from penchant.guards.monitors.history import RunFacts
from penchant.guards.monitors.supervisor import Supervisor
from penchant.methods.sums import SumOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
    from penchant.methods.base import Method
    from penchant.training.engine import Engine
    from penchant.training.setup import Setup


def make_supervisor(
    config: RunConfig, accelerator: Accelerator, setup: Setup, engine: Engine
) -> tuple[Supervisor, list[Finding]]:
    """The guard of a run, and what is to be said of it before the first step."""
    watch, findings = None, []
    if config.spec.model == "language" and config.monitor_prompts:
        if not setup.eval_set:
            from penchant.guards.monitors.answering import no_held_out

            findings = [no_held_out(config)]
        if setup.eval_set or config.spec.samples:
            from penchant.guards.monitors.answering import make_watch

            watch = make_watch(config, accelerator, setup, engine)
    if config.spec.model == "language" and setup.eval_set and _lacks_start(config, setup):
        from penchant.guards.monitors.answering import no_start

        findings.append(no_start())
    options: Any = config.options
    strength = _strength(options, referenced=setup.reference is not None)
    supervisor = Supervisor(
        run=engine.run,
        facts=RunFacts(
            num_steps=engine.source.num_steps,
            samples=config.spec.samples,
            taught=config.spec.needs(options).divergence is not None,
            scores=config.spec.model == "score",
            strength=strength,
            sft=_supervised(options),
            beta=reported_beta(config.spec, options),
        ),
        watch=watch,
    )
    if config.on_finding != "warn":
        from penchant.guards.monitors.acting import acting

        supervisor = acting(supervisor, config, setup, engine)
    return supervisor, findings


def _lacks_start(config: RunConfig, setup: Setup) -> bool:
    """Whether an adapter is trained, and neither it nor a reference gives the start."""
    return bool(config.peft) and setup.reference is None and not config.off_is_start


def _supervised(options: Any) -> str:
    """The key that adds a supervised term; empty where a method has none."""
    if isinstance(options, SumOptions):
        return "a weight of sft in losses"
    return "rpo_alpha" if hasattr(options, "rpo_alpha") else ""


def reported_beta(method: Method, options: Any) -> float | None:
    """What the reported rewards are multiples of, in log-ratios; None of rewards without ratios."""
    if isinstance(options, SumOptions):  # the first loss reports
        first = options.terms[0]
        return reported_beta(first.method, first.options)
    return getattr(options, "beta", None) if method.needs_reference else None


def _strength(options: Any, *, referenced: bool) -> str:
    """The key that holds the policy near its reference; empty for methods without one.

    Args:
        options: of the method.
        referenced: whether the method compares with a reference: elsewhere `beta` is another thing.
    """
    keys = ("init_kl_coef", "beta") if referenced else ("init_kl_coef",)
    return next((key for key in keys if key in type(options).model_fields), "")
