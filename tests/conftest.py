"""Fixtures that every test may use."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of shared data and models, which no copy of the repository carries."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("PENCHANT_SHARED", default))
    if not folder.is_dir():
        pytest.skip("needs ../shared")
    return folder


CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep reference log-probs and converted models out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENCHANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Messages name the program as it can be typed: here it can.
        patch.setattr("penchant.core.commands._on_path", lambda: True)
        yield


@pytest.fixture
def serve_chat() -> Iterator[Callable[..., Any]]:
    """Return a function that serves a model as OpenAI does: `answer` gives a text for a text.

    The server has `url`, `asked`, every text that it was asked, and `answer`, to be replaced.
    """
    servers = []

    def start(answer: Callable[[str], str], model: str = "judge") -> Any:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Write nothing to the terminal."""

            def do_GET(self) -> None:
                self.reply({"data": [{"id": model}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                server.asked.append(text)
                self.reply({"choices": [{"message": {"content": server.answer(text)}}]})

            def reply(self, content: Any) -> None:
                body = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.asked, server.answer = [], answer
        server.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random Llama of 2 layers, and a byte-level tokenizer with ChatML."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = _byte_level(CHATML)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_without_weights(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """Return the tiny model as nothing can load it: what is refused with it is refused before."""
    folder = tmp_path_factory.mktemp("models") / "without-weights"
    shutil.copytree(tiny_model_dir, folder, ignore=lambda *_: ["model.safetensors"])
    return folder


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Callable[[str], Any]:
    """Return a function that makes the tiny model's tokenizer with another chat template."""
    return _byte_level


def _byte_level(template: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
    )


@pytest.fixture(scope="session")
def training_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 24 pairs of a rule that a tiny model learns in seconds: yes is better than no."""
    return _write_pairs(tmp_path_factory.mktemp("data") / "training.jsonl", range(24))


@pytest.fixture(scope="session")
def held_out_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 8 further pairs of the same rule, under other prompts."""
    return _write_pairs(tmp_path_factory.mktemp("data") / "held-out.jsonl", range(24, 32))


def _write_pairs(path: Path, numbers: range) -> Path:
    answers = (" yes", " no")
    rows = [
        {
            "prompt": f"Is {number} {'so' * (number % 5)}?",
            **{
                side: answer + " sir" * (number % 3) + "!" * (number % 2)
                for side, answer in zip(("chosen", "rejected"), answers, strict=True)
            },
        }
        for number in numbers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def as_labels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Return a function that writes a file of pairs as one of labels, good and bad in turn."""

    def convert(pairs: Path) -> Path:
        rows = [
            {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            for row in map(json.loads, pairs.read_text(encoding="utf-8").splitlines())
            for side in ("chosen", "rejected")
        ]
        path = tmp_path_factory.mktemp("labels") / pairs.name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return convert


@pytest.fixture(scope="session")
def tokenised() -> Callable[[Path | str, Path | str], Any]:
    """Return a function that gives the token ids of a file of pairs for a saved model."""

    def tokenise(file: Path | str, model: Path | str) -> Any:
        from penchant.data.read import read_pairs
        from penchant.data.tokenise import Tokeniser
        from penchant.models.load import load_tokenizer

        tokeniser = Tokeniser(load_tokenizer(str(model)), max_length=64, max_prompt_length=32)
        return tokeniser.pairs(read_pairs(file).records)[0]

    return tokenise


@pytest.fixture(scope="session")
def load_saved() -> Callable[[Path], Any]:
    """Return a function that loads a saved model or adapter as a user would, without Penchant."""

    def load(folder: Path) -> Any:
        import peft
        import transformers

        file = folder / "adapter_config.json"
        if file.exists():
            if json.loads(file.read_text())["task_type"] == "SEQ_CLS":
                reward: Any = peft.AutoPeftModelForSequenceClassification
                return reward.from_pretrained(folder, num_labels=1).eval()
            return peft.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
        architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
        return getattr(transformers, architecture).from_pretrained(folder).eval()

    return load


@pytest.fixture(scope="session")
def tiny_keys(tiny_model_dir: Path, training_file: Path) -> dict[str, Any]:
    """Return the keys of a run of 6 steps that takes a fraction of a second."""
    return {
        "model": str(tiny_model_dir),
        "data": str(training_file),
        "max_length": 64,
        "max_new_tokens": 4,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        # What is measured in time differs from run to run; tests of monitors ask for them.
        "monitor_prompts": 0,
    }


@pytest.fixture
def unpadded_model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """Return the tiny model as Llama 3 comes: no pad token in its settings, and EOS pads."""
    from penchant.models.load import load_tokenizer

    folder = tmp_path / "unpadded"
    shutil.copytree(tiny_model_dir, folder)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "pad_token_id": None}))
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Return Chromium, driven by Playwright."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("needs chromium on the PATH (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        # The sandbox needs a user other than root, and the pages are our own.
        started = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def as_killed() -> Callable[..., Path]:
    """Return a function that copies a complete run as a kill would have left it.

    Checkpoints behind step `after` are taken away; None: what is logged and saved of the steps
    stays, as if the run had been killed when it ended.
    """

    def cut(complete: Path, folder: Path, *, after: int | None = None) -> Path:
        shutil.copytree(complete, folder, ignore=shutil.ignore_patterns("model", "summary.json"))
        text = (folder / "config.yaml").read_text().replace(str(complete), str(folder))
        (folder / "config.yaml").write_text(text)
        for checkpoint in (folder / "checkpoints").glob("step-*"):
            if after is not None and int(checkpoint.name.removeprefix("step-")) > after:
                shutil.rmtree(checkpoint)
        return folder

    return cut


# Small enough for thousands of passes, large enough that logits differ by several nats.
TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": None},
    "phi": {"num_key_value_heads": 4},
    "granite": {"logits_scaling": 0.25, "attention_multiplier": 0.4},
    "cohere": {"logit_scale": 0.5, "tie_word_embeddings": True},
    "gemma2": {
        "head_dim": 8,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 2.0,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {"head_dim": 8, "sliding_window": 256, "tie_word_embeddings": True},
    "gpt2": {
        **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        **{"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "tie_word_embeddings": True},
    },
}
# Layers that carry a state along the sequence, beside or instead of attention.
DELTA_NET = {
    **{"head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 3},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4},
}
MAMBA_2 = {
    **{"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_d_conv": 3},
    **{"mamba_n_groups": 2, "mamba_chunk_size": 8},
}
STATEFUL: dict[str, dict[str, Any]] = {
    "qwen3_5_text": DELTA_NET,
    "qwen3_next": {
        **DELTA_NET,
        **{"num_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    },
    "granitemoehybrid": {
        **MAMBA_2,
        **{"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 0},
        **{"shared_intermediate_size": 48, "position_embedding_type": "rope"},
    },
    "nemotron_h": {
        **{"layers_block_type": ["linear_attention", "full_attention", "mlp"]},
        **{"num_hidden_layers": 3, "head_dim": 8, "n_groups": 2, "ssm_state_size": 8},
        **{"mamba_num_heads": 8, "mamba_head_dim": 8, "conv_kernel": 3, "chunk_size": 8},
    },
    "falcon_h1": {**MAMBA_2, "mamba_d_ssm": 64, "head_dim": 8},
    "lfm2": {
        **{"layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
        **{"block_auto_adjust_ff_dim": False},
    },
    "mamba": {"state_size": 8},
}
FAMILIES |= STATEFUL


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """Return a function that makes a tiny random model, the same one for the same arguments."""

    def make(
        family: str = "llama", *, seed: int = 0, dtype: str = "float32", **changes: Any
    ) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(family, **{**TINY, **FAMILIES.get(family, {}), **changes})
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        if head_bias := model.get_output_embeddings().bias is not None:
            torch.nn.init.normal_(model.get_output_embeddings().bias)
        assert head_bias == (family == "phi")
        return model.to(getattr(torch, dtype)).eval()

    return make


@pytest.fixture(scope="session")
def make_score_model() -> Callable[..., Any]:
    """Return a function that makes a tiny random model with a scalar head."""

    def make(
        family: str = "llama", *, seed: int = 0, dtype: str = "float32", **changes: Any
    ) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        settings = {**TINY, **FAMILIES[family], "num_labels": 1, **changes}
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(family, **settings)
        )
        return model.to(getattr(torch, dtype)).eval()

    return make


@pytest.fixture(scope="session")
def groups() -> list[Any]:
    """Return prompts with their completions: one token long and longer, one to three of them."""
    from penchant.data.batch import Group

    return [
        Group([1, 5, 6, 7, 8], ([9, 10, 11, 2], [12, 13, 2])),
        Group([1], ([14], [15, 16, 17, 18, 19, 20, 2])),
        Group([1, 21, 22, 23], ([24, 25, 2], [24, 26, 2], [2])),
        Group([1, 27, 28], ([29, 30, 31, 2],)),
    ]


@pytest.fixture(scope="session")
def plain_logprobs() -> Callable[..., Any]:
    """Return the naive computation: a forward pass and a log-softmax for each completion."""

    def compute(model: Any, groups: Any) -> Any:
        import torch

        parts = []
        for group in groups:
            for completion in group.completions:
                ids = torch.tensor([[*group.prompt, *completion]])
                logits = model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1]
                rows = logits.double().log_softmax(-1)
                parts.append(rows[torch.arange(len(completion)), torch.tensor(completion)])
        return torch.cat(parts)

    return compute
