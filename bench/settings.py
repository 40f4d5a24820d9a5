"""What both trainers are asked to do, passed between the processes as one JSON argument."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Settings:
    model: str
    method: str
    mode: str  # lora or full
    steps: int
    batch_size: int
    max_length: int
    seed: int
    precision: str  # fp32 or bf16
    lengths: str | None
    attention: str
    one_label: bool = False  # one completion of each pair, where a method learns from labels
    lora_targets: str = "q_proj,k_proj,v_proj,o_proj"

    @property
    def learning_rate(self) -> float:
        return 1e-5 if self.mode == "lora" else 1e-6

    @property
    def target_modules(self) -> list[str]:
        return self.lora_targets.split(",")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls) -> Settings:
        return cls(**json.loads(sys.argv[1]))


@dataclass(frozen=True)
class Outcome:
    losses: list[float]
    seconds: list[float]
    memory_peak_bytes: int
    positions: list[int]  # of each step's differentiated passes, padding included

    def print(self) -> None:
        print("OUTCOME " + json.dumps(asdict(self)), flush=True)
