"""Whole runs on the pretended device, in a process of their own.

`python run.py LIBRARY RUNS.json RESULT.json`: RUNS maps names to a method's keys; RESULT has, for
each, the metrics and the counts of every step, of every batch of rollouts, and of all that was
outside of both, and the error that ended it, or null. `stand-in` says what the device makes of
operations whose answer is known.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import pretended

if __name__ == "__main__":
    guard = pretended.load(Path(sys.argv[1]))

import accelerate  # noqa: F401
import peft  # noqa: F401
import torch
import transformers  # noqa: F401

from penchant.commands.train import train
from penchant.methods import METHODS
from penchant.models import attention_gpu, linear
from penchant.training.step import Step


def dense_flex(
    q: Any, k: Any, v: Any, *, score_mod: Any, block_mask: Any, scale: float, enable_gqa: bool,
    **asked: Any,
) -> Any:  # fmt: skip
    """What the compiled kernel computes, from the same rules, densely."""
    at = torch.arange(q.shape[2], device=q.device)
    none = torch.zeros((), dtype=torch.long, device=q.device)
    rows, columns = at[:, None], at[None, :]
    seen = block_mask.mask_mod(none, none, rows, columns)  # [T, T]
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)).float() * scale  # [1, heads, T, T]
    if score_mod is not None:
        scores = score_mod(scores, none, none, rows, columns)
    scores = scores.masked_fill(~seen, -torch.inf)
    out = scores.softmax(-1).to(v.dtype) @ v
    return (out, scores.logsumexp(-1)) if asked else out


class Record:
    """Counts of each part of a run."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Any]] = []

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Count what a method does as a part of its own."""
        own = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.close("between")
            result = own(*args, **kwargs)
            said = {} if not isinstance(result, dict) else {"metrics": result}
            self.close(part, said)
            return result

        setattr(owner, name, wrapped)

    def close(self, part: str, more: dict[str, Any] | None = None) -> None:
        self.parts.append({"part": part, **pretended.COUNTS.take(), **(more or {})})


def examine() -> dict[str, Any]:
    """What the stand-in itself says of operations whose answer is known."""
    there, here = torch.ones(4, device="cuda"), torch.ones(4)
    found: dict[str, Any] = {"device": str((there + 1).device), "sum": float(here.sum())}
    errors = {
        "two devices": lambda: there + here,
        "a CPU tensor indexed by the device's": lambda: here[there.long()],
        "numpy": lambda: there.numpy(),
    }
    for name, call in errors.items():
        try:
            call()
            found[name] = "no error"
        except (RuntimeError, TypeError) as error:
            found[name] = str(error)
    pinned = here.pin_memory()
    waits = {
        "item": lambda: there.sum().item(),
        "tolist": lambda: there.tolist(),
        "cpu": lambda: there.cpu(),
        "mask": lambda: there[there > 0],
        "from the CPU": lambda: here.to("cuda"),
        "not pinned": lambda: here.to("cuda", non_blocking=True),
        "pinned": lambda: pinned.to("cuda", non_blocking=True),
        "tensor": lambda: torch.tensor([1.0], device="cuda"),
        "ones": lambda: torch.ones(4, device="cuda"),
        "product": lambda: there @ there,
    }
    for name, call in waits.items():
        pretended.COUNTS.take()
        call()
        found[name] = sum(pretended.COUNTS.take()["waits"].values())
    return found


def main(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    attention_gpu._flex_kernel = lambda compiled: dense_flex  # type: ignore[assignment]
    linear.PLAIN_TENSORS += (type(torch.ones(1, device="cuda")),)
    record, results = Record(), {"stand-in": examine()}
    record.wrap(Step, "take", "step")
    if any(METHODS[keys["method"]].samples for keys in runs.values()):
        from penchant.rl.rollout import Collector

        record.wrap(Collector, "collect", "collect")
    for name, keys in runs.items():
        record.parts, error = [], None
        pretended.COUNTS.take()
        try:
            train(**keys)
        except BaseException:
            error = traceback.format_exc()
        record.close("end")
        results[name] = {"parts": record.parts, "error": error}
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    pretended.appear(guard)
    wanted = json.loads(Path(sys.argv[2]).read_text("utf-8"))
    with pretended.on_device():
        found = main(wanted)
    Path(sys.argv[3]).write_text(json.dumps(found), "utf-8")
