"""What watches a run, made from its configuration and what is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penchant.core.findings import Finding
from penchant.guards.monitors.history import RunFacts
from penchant.guards.monitors.supervisor import Supervisor

if TYPE_CHECKING:
    from accelerate import Accelerator

    from penchant.config.keys import RunConfig
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
            sft=options.supervised_key,
            beta=options.reported_beta(config.spec),
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


def _strength(options: Any, *, referenced: bool) -> str:
    """The key that holds the policy near its reference; empty for methods without one.

    Args:
        options: of the method.
        referenced: whether the method compares with a reference: elsewhere `beta` is another thing.
    """
    keys = ("init_kl_coef", "beta") if referenced else ("init_kl_coef",)
    return next((key for key in keys if key in type(options).model_fields), "")
