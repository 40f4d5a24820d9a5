"""One PPO run of TRL 0.11.4 for the comparison, in its own environment; prints its outcome."""

import json
import resource
import sys
import time
import warnings
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

from positions import Positions

warnings.filterwarnings("ignore")


def main():
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(0)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        settings["model"],
        peft_config=LoraConfig(
            r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    config = PPOConfig(
        batch_size=settings["batch_size"], mini_batch_size=settings["mini_batch_size"],
        ppo_epochs=settings["ppo_epochs"], learning_rate=settings["learning_rate"],
    )  # fmt: skip
    file = str(Path(settings["model"]) / "tokenizer.json")
    end = settings["end_token"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, eos_token=end, pad_token=end)
    trainer = PPOTrainer(config, model, None, tokenizer)
    size = settings["batch_size"]
    seconds, positions, generating = [], [], 0.0
    laid_out = Positions(model.pretrained_model)
    for i in range(settings["batches"]):
        started = time.perf_counter()
        queries = [torch.tensor(ids) for ids in settings["prompts"][i * size : (i + 1) * size]]
        responses = trainer.generate(
            queries, batch_size=size, return_prompt=False, do_sample=True, top_k=0, top_p=1.0,
            max_new_tokens=settings["max_completion_length"], pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        generating += time.perf_counter() - started
        scores = [(response % 2 == 0).float().mean() for response in responses]
        trainer.step(queries, responses, scores)
        seconds.append(time.perf_counter() - started)
        positions.append(laid_out.since())
    outcome = {
        "seconds": seconds,
        "positions": positions,
        "generation_share": generating / sum(seconds),
        "memory_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print("OUTCOME " + json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
