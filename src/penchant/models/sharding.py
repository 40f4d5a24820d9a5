"""Weights divided among the processes: torch's FSDP2, one unit a decoder layer.

Each process holds a part of every weight; a unit's weights are gathered for its passes and given up
after them. Embeddings, the last norm and the heads are the root's, which is the scorer itself: its
forward has them whole. What reads weights outside of a forward pass does so inside `opened`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from penchant.core.errors import ModelError, TrainingError
from penchant.core.patience import patience
from penchant.core.team import Team

if TYPE_CHECKING:
    from torch import Tensor

Sharding = Literal["off", "full", "hybrid"]


@lru_cache
def make_mesh(device: torch.device, sharding: Sharding, size: int, node_size: int) -> Any:
    """The processes that divide weights among them.

    Args:
        device: of the passes.
        sharding: `full`: all processes divide; `hybrid`: those of a node do, and nodes are copies.
        size: number of processes; node_size: of those on one node.

    Raises:
        ValueError: nodes of different sizes, for `hybrid`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.distributed_c10d import _set_pg_timeout

    if sharding == "full":
        return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    if size % node_size:
        raise ValueError(
            f"sharding hybrid needs nodes of equal size, and {size} processes are not a multiple "
            f"of {node_size}; set sharding to full"
        )
    shape = (size // node_size, node_size)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
    for group in mesh.get_all_groups():  # else they have the default, as short as it is
        _set_pg_timeout(patience(), group)
    return mesh


def shard(scorer: Any, mesh: Any, *, offload: bool = False) -> None:
    """Divide a scorer's weights; from now on every process takes part in each of its passes.

    Adapters and heads must be there, and no optimizer: its parameters are others afterwards.

    Args:
        scorer: whose weights are divided.
        mesh: the processes, as `make_mesh` returned them.
        offload: keep the parts in main memory; a unit's go to the device for its passes.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    pinned = mesh.device_type != "cpu"
    policy = CPUOffloadPolicy(pin_memory=pinned) if offload else OffloadPolicy()
    divide = partial(fully_shard, mesh=mesh, reshard_after_forward=True, offload_policy=policy)
    for layers in _layers(scorer):
        for layer in layers:
            divide(layer)
    divide(scorer)
    # By default the order of all earlier forward passes says what is gathered next in backward,
    # and passes that one process alone has made, as in sampling, would make it another order.
    for layers in _layers(scorer):
        for before, layer in zip([layers[0], *layers], layers, strict=False):
            layer.set_modules_to_backward_prefetch([before])
        scorer.set_modules_to_backward_prefetch([layers[-1]])


def empty(scorer: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give up the memory of weights that another process hands out, in its dtypes.

    Weights that are one stay one, as a head that is the embedding.

    Raises:
        ModelError: the other process has other weights than this one.
    """
    own = {name for name, _ in scorer.named_parameters()}
    if others := sorted(own ^ dtypes.keys()):
        raise ModelError(
            f"the first process has loaded other weights than its model's configuration says "
            f"({', '.join(others[:3])}); where its files hold a head of its own, set "
            "tie_word_embeddings to false in config.json"
        )
    twins = {
        parameter: nn.Parameter(
            torch.empty_like(parameter, dtype=dtypes[name], device="meta"), parameter.requires_grad
        )
        for name, parameter in scorer.named_parameters()
    }
    for module in scorer.modules():
        for key, one in module._parameters.items():
            module._parameters[key] = None if one is None else twins[one]
    scorer.to("meta")  # the buffers


def place_buffers(scorer: nn.Module, buffers: Mapping[str, Tensor], device: torch.device) -> None:
    """Take the buffers of another process, such as the frequencies of positions."""
    for name, buffer in buffers.items():
        owner, _, key = name.rpartition(".")
        scorer.get_submodule(owner)._buffers[key] = buffer.to(device)


@torch.no_grad()
def hand_out(scorer: nn.Module, weights: Mapping[str, Tensor], device: torch.device) -> None:
    """Give every process its part of the first one's weights, one tensor after the other.

    Args:
        scorer: sharded.
        weights: whole, by name, in the first process; empty elsewhere.
        device: of the passes.
    """
    from torch import distributed

    for name, parameter in scorer.named_parameters():
        if weights:
            one = weights[name].to(device)
        else:
            one = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        distributed.broadcast(one, src=0)
        part: Any = parameter
        part.to_local().copy_(divided_as(one, parameter).to_local())  # type: ignore[attr-defined]


def _layers(scorer: Any) -> list[list[Any]]:
    """The decoder layers of each model that is trained together."""
    layers = []
    for model in scorer.causal_models:
        lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
        layers.append(max(lists, key=len))
    return layers


def units_of(module: nn.Module) -> list[Any]:
    """The units of a sharded module, the root first."""
    return [unit for unit in module.modules() if hasattr(unit, "set_reshard_after_forward")]


@contextmanager
def opened(scorer: nn.Module, *, layers: bool = False) -> Iterator[None]:
    """Have the root's weights whole for a while, and with `layers` all weights.

    Every process comes here. It may be entered again inside of itself, by one process alone: what
    is open then stays so. A pass that raises inside of it is lost, and the next one is sound.
    """
    root: Any = scorer
    units = [unit for unit in units_of(scorer) if not getattr(unit, "_is_opened", False)]
    if not layers:
        units = [unit for unit in units if unit is scorer]
    for unit in units:
        unit._is_opened = True
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    except Exception:
        root._has_failed = True  # for the outermost opening, which may not hear of it
        raise
    finally:
        for unit in units:
            unit._is_opened = False
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()
        if root in units and vars(root).pop("_has_failed", False):
            _forget_failed_pass(root)


def _forget_failed_pass(root: Any) -> None:
    """Make layers in which a pass has failed ready for the next one; old versions of torch are."""
    if hasattr(root, "reset_iter_state"):
        root.reset_iter_state()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds a part of a tensor only."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on the CPU; every process calls it."""
    gathered: Any = tensor.detach()
    if is_sharded(tensor):  # parts in main memory meet on the device
        gathered = gathered.to(gathered.device_mesh.device_type).full_tensor()
    return gathered.cpu().contiguous()


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All of every tensor by name, on the CPU; every process calls it, some `keep` them.

    Tensors that are one stay one.
    """
    known: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in known:
            one = whole(tensor)
            known[id(tensor)] = one if keep else one.new_empty(0)
    return {name: known[id(tensor)] for name, tensor in tensors.items()} if keep else {}


@torch.no_grad()
def clip(parameters: Iterable[Any], max_norm: float, device: torch.device) -> Tensor:
    """Clip a gradient that is divided among processes; returns its norm before that.

    Parts may lie in main memory, and their norms meet on the device: torch's own function would
    let them meet where they lie, which needs a second process group.
    """
    from torch import distributed

    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [gradient.to_local() for gradient in gradients]
    norms = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts])
    square = norms.square().sum().to(device)
    distributed.all_reduce(square, group=gradients[0].device_mesh.get_group("shard"))
    norm = square.sqrt()
    # As torch does: the factor of a short gradient is 1, and of one that is not finite NaN.
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0).to(parts[0].device)
    for part in parts:
        part.mul_(factor)
    return norm


def divided_as(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, divided as another one is."""
    if not is_sharded(like):
        return value.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    twin: Any = like
    # Every process has the whole value: nothing travels.
    return distribute_tensor(
        value.to(twin.device), twin.device_mesh, twin.placements, src_data_rank=None
    )


def whole_bytes(scorer: nn.Module) -> int:
    """Bytes of weights that a pass has whole beside the parts: the root's, and two layers'."""
    sizes = [_unit_bytes(unit) for unit in units_of(scorer)]
    return sizes[0] + sum(sorted(sizes[1:])[-2:]) if sizes else 0


def _unit_bytes(unit: Any) -> int:
    """Of the weights that are a unit's own."""
    inner = {id(p) for other in units_of(unit)[1:] for p in other.parameters()}
    return _bytes(p for p in unit.parameters() if id(p) not in inner)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def out_of_step(team: Team, said: str) -> TrainingError:
    """That a pass has failed in this process, in which others may wait for it."""
    return TrainingError(
        f"process {team.rank}: {said}. Other processes may wait for it in this pass, so that no "
        "other way can be tried; set attention to another kernel, such as sdpa or plain, or set "
        "sharding to off"
    )
