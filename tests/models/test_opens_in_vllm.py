"""What a run saves opens in vLLM, which says the same of a text as transformers does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import penchant

PYTHON = os.environ.get("PENCHANT_VLLM_PYTHON")
ROWS = [{"prompt": "Once upon", "chosen": " a time there was", "rejected": " no"}] * 2
SHAPE = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 512,
}  # fmt: skip
MIXED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
ASK = """
import json, sys
from vllm import LLM, SamplingParams
folder, ids = sys.argv[1], json.loads(sys.argv[2])
model = LLM(folder, dtype="float32", max_model_len=128, enforce_eager=True)
asked = SamplingParams(max_tokens=1, prompt_logprobs=0)
(found,) = model.generate([{"prompt_token_ids": ids}], asked)
said = [next(iter(one.values())).logprob for one in found.prompt_logprobs[1:]]
print("SAID", json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="needs PENCHANT_VLLM_PYTHON, a Python with vLLM")
@pytest.mark.parametrize(("family", "more"), [("gemma3_text", MIXED), ("qwen3", {})])
def test_a_merged_model_says_the_same_in_vllm(
    family: str, more: dict[str, Any], make_model: Any, tmp_path: Path, shared: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    start = tmp_path / "start"
    make_model(family, vocab_size=len(tokenizer), **SHAPE, **more).save_pretrained(start)
    tokenizer.save_pretrained(start)
    penchant.train(
        "dpo", model=str(start), data=ROWS, output=tmp_path / "run", merge=True, max_steps=2,
        learning_rate=1e-2, warmup_ratio=0.0, per_device_train_batch_size=2,
    )  # fmt: skip
    merged = tmp_path / "run" / "merged"
    ids = tokenizer("Once upon a time there was a little girl named Lily and she").input_ids
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    quiet = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    assert PYTHON is not None
    done = subprocess.run(
        [PYTHON, "-c", ASK, str(merged), json.dumps(ids)], env={**os.environ, **quiet},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("SAID ")]
    assert lines, done.stderr[-3000:]
    said = torch.tensor(json.loads(lines[0].removeprefix("SAID ")))
    torch.testing.assert_close(said, expected, rtol=0, atol=1e-4)
