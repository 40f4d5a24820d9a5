"""A pretended CUDA device: CPU tensors that say they are on `cuda:0`, with real values.

What depends on a tensor's device takes its branch for CUDA, operations on tensors of two devices
raise as CUDA's do, and every place where the host would wait for the device is counted. Nothing is
said about kernels, speed or memory.

`load()` comes before torch is imported, and `appear()` after all that looks for a GPU when it is
imported: so this is for a process of its own, see `run.py`.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

GUARD = Path(__file__).with_name("guard.cpp")


def _folder_of(package: str) -> Path:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


# A clone may be called like the package.
PACKAGE = f"{_folder_of('penchant')}{os.sep}"


def build(folder: Path) -> Path:
    """Compile the guard for the installed torch, once for each content; returns the library."""
    torch_folder = _folder_of("torch")
    version = (torch_folder / "version.py").read_bytes()
    name = hashlib.sha256(GUARD.read_bytes() + version).hexdigest()[:16]
    library = folder / f"guard-{name}.so"
    if not library.exists():
        include, lib = torch_folder / "include", torch_folder / "lib"
        partial = library.with_suffix(".partial")
        command = [
            *("g++", "-shared", "-fPIC", "-std=c++20", "-O0", str(GUARD), "-o", str(partial)),
            *(f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"),
            *(f"-L{lib}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{lib}"),
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
        partial.replace(library)
    return library


class Counts:
    """What was counted since it was last emptied, by place: `file:line < its caller < ...`."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.mismatches: Counter[str] = Counter()
        self.operations = 0

    def wait(self, what: str) -> None:
        self.waits[f"{what} @ {place()}"] += 1

    def take(self) -> dict[str, Any]:
        """All of it, as JSON; counting starts again from nothing."""
        counted = {
            "waits": dict(self.waits),
            "mismatches": dict(self.mismatches),
            "operations": self.operations,
        }
        self.waits, self.mismatches, self.operations = Counter(), Counter(), 0
        return counted


def place(depth: int = 3) -> str:
    """Where the package called what is under way, the innermost line first."""
    found: list[str] = []
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(PACKAGE) and len(found) < depth:
            found.append(f"{frame.filename.removeprefix(PACKAGE)}:{frame.lineno}")
    return " < ".join(found) or "outside of the package"


COUNTS = Counts()

# Operators that take tensors of both devices, as on CUDA.
ACROSS = ("_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_", "set_")
# The size of their result, or the result itself, is known to the host once the device is done.
READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero")
READS_UNIQUE = ("_unique2", "unique_dim", "unique_consecutive")
LIFTS = ("lift", "lift_fresh")


def load(library: Path) -> Any:
    """Import torch with the guard beneath it; returns the guard."""
    assert "torch" not in sys.modules, "what torch knows of CUDA is settled when it is imported"
    folder = _folder_of("torch") / "lib"
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    guard = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import torch  # noqa: F401

    return guard


def appear(guard: Any) -> None:
    """Let this process have a CUDA device from now on."""
    import torch

    guard.install_guard()
    # Otherwise torch.tensor(..., device="cuda") would fill its memory without an operator.
    torch._C._set_only_lift_cpu_tensors(True)
    _answer_for_cuda(torch)
    make_tensor_class(torch)


def _answer_for_cuda(torch: Any) -> None:
    cuda, generator, gibibyte = torch.cuda, torch.Generator, 1 << 30
    answers: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "pretended",
        "mem_get_info": lambda device=None: (70 * gibibyte, 80 * gibibyte),
        "memory_allocated": lambda device=None: gibibyte,
        "memory_reserved": lambda device=None: gibibyte,
        "max_memory_allocated": lambda device=None: gibibyte,
        "reset_peak_memory_stats": lambda device=None: None,
        "get_device_properties": lambda device=None: _Properties(),
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: COUNTS.wait("synchronize"),
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "set_rng_state": lambda state, device="cuda": torch.set_rng_state(state),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "Stream": _Stream,
        "current_stream": lambda device=None: _Stream(),
        "stream": lambda stream: nullcontext(),
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    cuda.amp.common.amp_definitely_not_available = lambda: False

    class Generator:
        """A generator of CUDA is one of the CPU."""

        def __new__(cls, device: Any = None) -> Any:
            return generator("cpu")

    torch.Generator = Generator

    def same_kind(input: Any, from_: Any) -> bool:
        """Names and places as torch's own: dynamo compares them."""
        return type(input.data) is type(from_.data)

    torch._has_compatible_shallow_copy_type = same_kind


class _Stream:
    """All is done in the order in which it is asked for."""

    def wait_stream(self, other: Any) -> None: ...


class _Properties:
    total_memory = 80 << 30
    name = "pretended"
    major, minor, multi_processor_count = 9, 0, 132
    gcnArchName = ""  # noqa: N815


def make_tensor_class(torch: Any) -> None:
    """Define the tensors that say they are on CUDA, and the mode that makes them."""
    from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
    from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

    aten, cuda = torch.ops.aten, torch.device("cuda:0")
    pinned: dict[int, Any] = {}

    class OnDevice(torch.Tensor):  # type: ignore[name-defined,misc]
        """Wraps the CPU tensor that has its values."""

        __torch_function__ = torch._C._disabled_torch_function_impl

        @staticmethod
        def __new__(cls: Any, held: Any) -> Any:
            return torch.Tensor._make_wrapper_subclass(
                cls,
                held.size(),
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                layout=held.layout,
                device=cuda,
            )

        def __init__(self, held: Any) -> None:
            self.held = held

        def __repr__(self, *, tensor_contents: Any = None) -> str:
            return f"OnDevice({self.held!r})"

        @property
        def data(self) -> Any:
            return torch.Tensor.data.__get__(self)

        @data.setter
        def data(self, other: Any) -> None:
            torch.Tensor.data.__set__(self, other)
            self.held = other.held

        def tolist(self) -> Any:
            COUNTS.wait("tolist")
            return self.detach().held.tolist()

        def numpy(self, *, force: bool = False) -> Any:
            raise TypeError("a tensor on cuda:0 has no numpy array; use .cpu() first")

        def untyped_storage(self) -> Any:
            return self.detach().held.untyped_storage()

        @classmethod
        def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return call(op, args, kwargs or {})

    def is_pinned(tensor: Any, device: Any = None) -> bool:
        return not isinstance(tensor, OnDevice) and _storage(tensor) in pinned

    def pin(tensor: Any, device: Any = None) -> Any:
        copy = tensor.clone(memory_format=torch.contiguous_format)
        pinned[_storage(copy)] = copy  # held: no other storage gets its address
        return copy

    def _storage(tensor: Any) -> int:
        return tensor.untyped_storage().data_ptr()

    torch.Tensor.is_pinned, torch.Tensor.pin_memory = is_pinned, pin

    def call(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        COUNTS.operations += 1
        name = op._schema.name.removeprefix("aten::")
        flat, spec = tree_flatten((args, kwargs))
        ours = [a for a in flat if isinstance(a, OnDevice)]
        others = [a for a in flat if isinstance(a, torch.Tensor) and not isinstance(a, OnDevice)]
        asked = kwargs.get("device")
        kind = None if asked is None else torch.device(asked).type
        if ours:
            _require_one_device(name, args, others)
            if _reads(name, args, kwargs):
                COUNTS.wait(name)
        _count_copies(name, args, kwargs, kind, bool(ours))
        held = [a.held if isinstance(a, OnDevice) else a for a in flat]
        plain_args, plain = tree_unflatten(held, spec)
        if kind == "cuda":
            plain["device"] = torch.device("cpu")
        if name == "_to_copy":
            plain["non_blocking"] = False
        result = _compute(op, plain_args, plain)
        if name in (*READS[:1], "equal", "is_nonzero") or kind == "cpu":
            return result
        if not ours and kind != "cuda":
            return result
        return _wrapped(op, args, kwargs, result, bool(ours))

    def _require_one_device(name: str, args: Any, others: list[Any]) -> None:
        apart = [a for a in others if a.dim()]
        indexes = name.startswith(("index", "_index"))
        if apart and (name not in ACROSS or (indexes and not isinstance(args[0], OnDevice))):
            COUNTS.mismatches[f"{name} @ {place()}"] += 1
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
                if name in ACROSS
                else "Expected all tensors to be on the same device, but found at least two "
                f"devices, cuda:0 and cpu! ({name})"
            )
        if indexes and apart:
            COUNTS.wait(f"{name} by an index of the CPU")

    def _reads(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
        if name in READS or name in READS_UNIQUE:
            return True
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = (torch.bool, torch.uint8)
            return any(isinstance(i, torch.Tensor) and i.dtype in masks for i in args[1])
        return False

    def _count_copies(
        name: str, args: Any, kwargs: dict[str, Any], kind: str | None, ours: bool
    ) -> None:
        if name == "_to_copy" and args[0].numel():  # of nothing, nothing is copied
            source = args[0]
            at_once = not kwargs.get("non_blocking")
            if ours and kind == "cpu" and at_once:
                COUNTS.wait("copy to the CPU")
            # From memory that is not pinned, the driver copies before it returns.
            if not ours and kind == "cuda" and (at_once or not is_pinned(source)):
                COUNTS.wait("copy to the device")
        elif name == "copy_" and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
            later = len(args) > 2 and args[2]
            if not later or not (isinstance(args[1], OnDevice) or is_pinned(args[1])):
                COUNTS.wait("copy_ between devices")

    def _compute(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if op is aten._fused_sdp_choice.default:
            return 0  # the one that consists of public operations
        if op is aten.mm.dtype:  # CUDA alone has products whose result is not rounded
            a, b, dtype = args
            return a.to(dtype) @ b.to(dtype)
        return op(*args, **kwargs)

    def _wrapped(op: Any, args: Any, kwargs: dict[str, Any], result: Any, ours: bool) -> Any:
        schema = op._schema
        out = tree_map(
            lambda x: (
                OnDevice(x) if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) else x
            ),
            result,
        )
        aliases = any(a.alias_info is not None for a in schema.arguments)
        if ours and (schema.is_mutable or aliases):
            if not schema.returns:
                return None
            try:
                return return_and_correct_aliasing(op, args, kwargs, out)
            except (AssertionError, RuntimeError, AttributeError):
                if schema.is_mutable:
                    return args[0]
        return out

    class Mode(TorchDispatchMode):
        """Sees operators that make tensors from nothing, too."""

        def __torch_dispatch__(
            self, op: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return call(op, args, kwargs or {})

    globals()["Mode"] = Mode


@contextmanager
def on_device() -> Iterator[Counts]:
    """Tensors that are asked to be on CUDA say that they are, in here."""
    with globals()["Mode"]():
        yield COUNTS
