"""What a computation holds in memory, and whether what is saved of a model opens elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def largest_tensor() -> Any:
    """Return the class of a context that keeps the size of the largest tensor made in it."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple | list) else (out,):
                if isinstance(one, torch.Tensor):
                    self.numel = max(self.numel, one.numel())
            return out

    return Largest


@pytest.fixture
def assert_saved_opens(tmp_path: Path, tiny_model_dir: Path) -> Callable[[Any], None]:
    """Return a function that saves a model with an adapter, and merged, and opens both.

    As a user would open them, without Penchant: the logits are those that it had before.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    from penchant.models.load import load_causal_model
    from penchant.models.lora import add_lora
    from penchant.models.save import save_model

    ids = torch.tensor([[1, 5, 6, 7, 20, 21, 22]])

    @torch.no_grad()
    def logits(model: Any) -> Any:
        return model.eval()(input_ids=ids).logits

    def check(model: Any) -> None:
        original = type(model)
        model.save_pretrained(tmp_path / "base")
        base = load_causal_model(str(tmp_path / "base"), dtype=torch.float32)
        before = logits(base)
        adapted = add_lora(base, r=2, alpha=4, dropout=0.0, target_modules="all-linear")
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        expected = logits(adapted)
        assert (expected - before).abs().max() > 0.01
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
        for merged in (False, True):
            save_model(adapted, tokenizer, tmp_path / str(merged), merged=merged)
        fresh = original.from_pretrained(tmp_path / "base", dtype=torch.float32)
        reopened = PeftModel.from_pretrained(fresh, tmp_path / "False")
        torch.testing.assert_close(logits(reopened), expected, rtol=1e-4, atol=1e-4)
        whole = original.from_pretrained(tmp_path / "True", dtype=torch.float32)
        torch.testing.assert_close(logits(whole), expected, rtol=1e-4, atol=1e-4)

    return check
