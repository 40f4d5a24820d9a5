"""What a run that samples holds in memory, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from penchant.core.screen import GIB, console
from penchant.models.memory import held_state, own_part, trained_bytes
from penchant.models.policy import PolicyScorer

if TYPE_CHECKING:
    from penchant.config.keys import RunConfig
    from penchant.training.setup import Setup


def memory_parts(config: RunConfig, setup: Setup) -> dict[str, int]:
    """Bytes of the weights that a process of a run holds, by part, each counted once."""
    policy = setup.scorer
    assert isinstance(policy, PolicyScorer) and setup.collector is not None
    seen: set[int] = set()

    def count(tensors: Any) -> int:
        total = 0
        for own in map(own_part, tensors):
            # Parts without an element, of tensors that others hold, all have the address 0.
            if own.nbytes and own.data_ptr() not in seen:
                seen.add(own.data_ptr())
                total += own.nbytes
        return total

    rewards = setup.collector.rewards.held_bytes()
    beside = (".reward.", ".teacher.")  # adapters of other models on the same weights
    own = [
        (name, parameter)
        for name, parameter in policy.model.named_parameters()
        if not any(part in name for part in beside)
    ]
    parts = {
        "policy, frozen": count(p for _, p in own if not p.requires_grad),
        "policy, trained": count(p for _, p in own if p.requires_grad),
    }
    if policy.value_head is not None:
        parts["value head"] = count(policy.value_head.parameters())
    if policy.critic is not None:
        parts["value model"] = count(policy.critic.parameters())
    if setup.reference is not None:
        cost = setup.reference_cost
        parts[f"reference ({setup.reference.kind})"] = 0 if cost is None else cost.num_bytes
    if setup.collector.teacher is not None:
        parts["teacher"] = setup.collector.teacher.num_bytes
    parts |= {f"reward {name}": size for name, size in rewards.items()}
    state = held_state(policy, config.optim)
    parts[f"gradients and the state of {config.optim}"] = trained_bytes(policy) + round(state)
    return parts


def print_memory(parts: Mapping[str, int]) -> None:
    """A table that adds up."""
    table = Table("in memory", "GiB", title="held through the run (activations come on top)")
    table.columns[1].justify = "right"
    for name, size in parts.items():
        table.add_row(name, f"{size / GIB:,.3f}")
    table.add_section()
    table.add_row("together", f"{sum(parts.values()) / GIB:,.3f}")
    console.print(table)
