"""Tasks of lm-evaluation-harness on what a run has saved."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

from penchant.cli.main import main
from penchant.commands.harness import run_tasks
from penchant.core.errors import ConfigError

INSTALLED = importlib.util.find_spec("lm_eval") is not None
TASK = """
task: yes_or_no
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [" yes", " no"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""


def test_a_harness_that_is_not_there_is_named_with_what_installs_it(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"lm-evaluation-harness .*penchant\[tasks\]"):
        run_tasks(model=tiny_model_dir, tasks=["gsm8k"])
    with pytest.raises(ConfigError, match="is given no max_prompt_length; it takes dtype, max_len"):
        run_tasks(model=tiny_model_dir, tasks=["gsm8k"], max_prompt_length=8)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs lm-eval: pip install 'penchant[tasks]'")
def test_an_adapter_is_measured_on_a_task_of_ones_own(
    adapter_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "test.jsonl"
    prompts = [f"Is {number} {'so' * (number % 5)}?" for number in range(24, 32)]
    data.write_text("".join(json.dumps({"question": prompt}) + "\n" for prompt in prompts))
    (tmp_path / "task.yaml").write_text(TASK.format(data=data))
    found = run_tasks(model=adapter_run, tasks=["yes_or_n*"], include_path=tmp_path)
    assert set(found) == {"yes_or_no"}
    accuracy: Any = found["yes_or_no"]["acc"]
    expected = [_says_yes(adapter_run, prompt) for prompt in prompts]
    assert accuracy["value"] == pytest.approx(sum(expected) / 8)
    assert math.isfinite(accuracy["error"])
    with pytest.raises(ConfigError, match="no task 'yes_or_none'; did you mean yes_or_no"):
        run_tasks(model=adapter_run, tasks=["yes_or_none"], include_path=tmp_path)

    words = ["evaluate", "--model", str(adapter_run), "--tasks", "yes_or_no", "--limit", "4"]
    assert main([*words, "--include_path", str(tmp_path)]) == 0
    assert "yes_or_no" in capsys.readouterr().out


def _says_yes(run: Path, prompt: str) -> bool:
    """Whether the saved model finds " yes" likelier than " no", by transformers and PEFT alone."""
    import peft
    import torch
    import transformers

    model = peft.AutoPeftModelForCausalLM.from_pretrained(run / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def logprob(text: str) -> float:
        answer = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*asked, *answer]])).logits[0].log_softmax(-1)
        return sum(float(logits[len(asked) - 1 + i, t]) for i, t in enumerate(answer))

    return logprob(" yes") > logprob(" no")
