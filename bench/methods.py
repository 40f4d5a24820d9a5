"""What each of Penchant's methods is called in TRL 1.16, and the options of both."""

from __future__ import annotations

from typing import Any

# method: (TRL's trainer, TRL's arguments, Penchant's options)
COUNTERPARTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "dpo": ("DPO", {}, {}),
    "ipo": ("DPO", {"loss_type": "ipo"}, {}),
    "robust": (
        "DPO",
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"label_smoothing": 0.1},
    ),
    "exo": (
        "DPO",
        {"loss_type": "exo_pair", "label_smoothing": 0.01},
        {"label_smoothing": 0.01},
    ),
    "nca": ("DPO", {"loss_type": "nca_pair"}, {"beta": 0.1}),
    "bco": ("DPO", {"loss_type": "bco_pair"}, {"beta": 0.1}),
    "sppo": ("DPO", {"loss_type": "sppo_hard"}, {"beta": 0.1}),
    "aot": ("DPO", {"loss_type": "aot"}, {}),
    "apo_zero": ("DPO", {"loss_type": "apo_zero"}, {}),
    "apo_down": ("DPO", {"loss_type": "apo_down"}, {}),
    "discopop": ("DPO", {"loss_type": "discopop"}, {"beta": 0.1}),
    "sigmoid_norm": ("DPO", {"loss_type": "sigmoid_norm"}, {"beta": 0.1}),
    "kto": ("KTO", {"train_sampling_strategy": "sequential"}, {}),
    "orpo": ("ORPO", {}, {}),
    "simpo": (
        "CPO",
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
        {"beta": 2.0, "gamma": 1.0},
    ),
    "cpo": ("CPO", {"loss_type": "sigmoid"}, {}),
    "reward": ("Reward", {}, {}),
}
