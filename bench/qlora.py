"""QLoRA on the CPU: losses beside TRL's on the same quantised base, and the bytes of the weights.

python bench/qlora.py                  SmolLM2-135M, 3 steps of DPO, 4 bits
python bench/qlora.py --bits 8

Both train a LoRA adapter that begins with the same weights, in fp32: TRL rounds an adapter on a
quantised base to bf16, which is taken back before its first step.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS, PAIRS, RATE, RANK = 3, 4, 1e-4, 8
# Largest share of fp32's bytes. Embeddings, a fifth of this model's weights, stay in fp32.
HELD = {4: 0.35, 8: 0.42}


def rows() -> list[dict[str, str]]:
    topics = ("rain", "bread", "maps", "clocks", "rivers", "stars", "trees", "songs", "ships",
              "paper", "salt", "wool")  # fmt: skip
    return [
        {
            "prompt": f"Tell me something about {topic}.",
            "chosen": f" There is much to say about {topic}, and I will begin with the basics.",
            "rejected": f" I do not like {topic}.",
        }
        for topic in topics
    ]


def settings(bits: int) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear",
                      task_type="CAUSAL_LM")  # fmt: skip


def arguments(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": STEPS,
        "per_device_train_batch_size": PAIRS,
        "gradient_accumulation_steps": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "max_length": 128,
        "bf16": False,
        "seed": 0,
        "report_to": "none",
        "save_strategy": "no",
    }


def losses_of(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, as in the demo")
    options = parser.parse_args()

    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from penchant.commands.demo import demo_model
    from penchant.compat import trl as ours
    from penchant.models.memory import weight_bytes

    name = options.model or demo_model()
    tokenizer = AutoTokenizer.from_pretrained(name)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    losses: dict[str, list[float]] = {}
    start: dict[str, Any] = {}
    held = 0
    for side, library in (("penchant", ours), ("trl", trl)):
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, quantization_config=settings(options.bits)
        )
        with tempfile.TemporaryDirectory() as folder:
            more = {"gradient_checkpointing": False} if side == "trl" else {}
            trainer = library.DPOTrainer(
                model=model,
                args=library.DPOConfig(**arguments(str(Path(folder) / "run")), **more),
                train_dataset=Dataset.from_list(rows()),
                processing_class=tokenizer,
                peft_config=lora(),
            )
            if side == "penchant":
                trainer._prepared()  # the adapter is there before the first step
                held = weight_bytes(trainer.model.get_base_model()) - sum(
                    p.numel() * 4 for p in trainer.model.parameters() if p.requires_grad
                )
                adapter = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
                start = {n: p.detach().clone() for n, p in adapter.items()}
            else:
                for key, parameter in trainer.model.named_parameters():
                    if parameter.requires_grad:
                        parameter.data = start[key].clone()
            losses[side] = losses_of(trainer)
    config = json.loads((Path(name) / "config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    whole = weight_bytes(plain)
    worst = max(abs(a - b) for a, b in zip(losses["penchant"], losses["trl"], strict=True))
    print(f"{config['architectures'][0]}, {options.bits} bits, {STEPS} steps of {PAIRS} pairs")
    for side, found in losses.items():
        print(f"  {side:<9}", "  ".join(f"{loss:.6f}" for loss in found))
    print(f"  largest difference {worst:.2g}")
    print(f"  weights {held / 1e6:.1f} MB of {whole / 1e6:.1f} MB in fp32: {held / whole:.3f}")
    sys.exit(worst > 1e-3 or held > HELD[options.bits] * whole)


if __name__ == "__main__":
    main()
