"""From the name that a user gives to a model and a tokenizer, or to one clear line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from penchant.core.errors import ModelError
from penchant.core.machine import default_cache_dir
from penchant.data.records import Pair
from penchant.data.tokenise import Tokeniser
from penchant.models.adapter_files import adapter_vocabulary, require_mergeable
from penchant.models.load import end_token_ids, load_causal_model, load_tokenizer
from penchant.models.locate import resolve
from penchant.models.lora import add_lora
from penchant.models.reference_cache import weights_fingerprint
from penchant.models.score_model import is_score_model, load_score_model

IDS = torch.tensor([[1, 5, 6, 7]])
FP32 = torch.float32


@pytest.fixture
def adapter_dir(tiny_model_dir, tmp_path):
    """A trained adapter of the tiny model."""
    return adapted(load_causal_model(str(tiny_model_dir), dtype=FP32), tmp_path / "adapter")


def adapted(base, folder, **more):
    """An adapter that changes its base, in its folder."""
    keys = {"r": 2, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", **more}
    model = add_lora(base, **keys)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


def test_a_folder_with_a_model_stands_for_itself(tiny_model_dir):
    assert resolve(str(tiny_model_dir)) == str(tiny_model_dir)


def test_a_run_directory_stands_for_the_model_it_made(tiny_model_dir, adapter_dir, tmp_path):
    for number, made in enumerate((tiny_model_dir, adapter_dir)):
        run = tmp_path / f"run{number}"
        shutil.copytree(made, run / "model")
        assert resolve(str(run)) == str(run / "model")


def test_a_name_with_one_slash_is_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == "owner/name"


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/no/such/model", "~/models/x", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no such model.*neither a folder nor a hub id") as caught:
        resolve(name)
    assert name in str(caught.value)


def test_a_folder_without_a_model_says_which_files_it_lacks(tmp_path):
    with pytest.raises(ModelError, match=r"neither config\.json nor adapter_config\.json"):
        resolve(str(tmp_path))


def test_a_gguf_file_that_does_not_exist_says_so():
    with pytest.raises(ModelError, match=r"no such file: nowhere\.gguf"):
        resolve("nowhere.gguf")


def test_an_adapter_is_merged_or_left_switchable(adapter_dir, tiny_model_dir):
    base = load_causal_model(str(tiny_model_dir), dtype=FP32)(input_ids=IDS).logits
    merged = load_causal_model(str(adapter_dir), dtype=FP32)
    kept = load_causal_model(str(adapter_dir), dtype=FP32, keep_adapter=True)
    found = kept.eval()(input_ids=IDS).logits
    assert (found - base).abs().max() > 0.01
    torch.testing.assert_close(merged(input_ids=IDS).logits, found, rtol=1e-4, atol=1e-5)
    assert not hasattr(merged, "disable_adapter")
    with kept.disable_adapter():
        torch.testing.assert_close(kept(input_ids=IDS).logits, base)


def test_an_adapter_whose_base_is_gone_names_it(adapter_dir):
    file = adapter_dir / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "base_model_name_or_path": "/gone/base"}))
    with pytest.raises(ModelError, match="/gone/base"):
        load_causal_model(str(adapter_dir), dtype=FP32)


def test_an_adapter_that_names_no_base_says_where_to_name_it(adapter_dir):
    file = adapter_dir / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": None}
    file.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"does not say which model.*adapter_config\.json"):
        load_causal_model(str(adapter_dir), dtype=FP32)


def test_an_adapter_with_more_tokens_than_its_base_has_them_all(tiny_model_dir, tmp_path):
    base = load_causal_model(str(tiny_model_dir), dtype=FP32)
    vocabulary = base.config.vocab_size
    base.resize_token_embeddings(vocabulary + 2)
    torch.manual_seed(0)
    tuned = get_peft_model(
        base, LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    ).eval()
    tuned.save_pretrained(tmp_path / "more")
    ids = torch.tensor([[1, vocabulary, vocabulary + 1]])
    loaded = load_causal_model(str(tmp_path / "more"), dtype=FP32)
    torch.testing.assert_close(loaded(ids).logits, tuned(ids).logits)
    assert adapter_vocabulary(str(tmp_path / "more")) == vocabulary + 2


def test_an_adapter_that_cannot_be_merged_is_refused_by_its_kind(adapter_dir):
    require_mergeable(str(adapter_dir))
    file = adapter_dir / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"peft_type": "PROMPT_TUNING"}
    file.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="PROMPT_TUNING, which cannot be added"):
        require_mergeable(str(adapter_dir))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_loaded_in_the_asked_dtype_and_without_dropout(tiny_model_dir, dtype):
    model = load_causal_model(str(tiny_model_dir), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not model.training


def test_a_reward_model_is_refused_for_what_it_is(tmp_path):
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="LlamaForSequenceClassification, which scores text"):
        load_causal_model(str(tmp_path), dtype=FP32)


@pytest.fixture
def reward_adapter_dir(tiny_model_dir, tmp_path):
    """A trained adapter of the tiny model with a scalar head."""
    torch.manual_seed(3)
    base = load_score_model(str(tiny_model_dir), dtype=FP32)
    return adapted(base, tmp_path / "reward-adapter", task_type="SEQ_CLS")


def test_a_language_model_gets_a_new_scalar_head_that_the_seed_decides(tiny_model_dir):
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = load_score_model(str(tiny_model_dir), dtype=FP32)
        assert model.score.weight.shape == (1, 32)
        heads.append(model.score.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    body = load_causal_model(str(tiny_model_dir), dtype=FP32).model
    torch.testing.assert_close(model.model(IDS)[0], body(IDS)[0])


def test_a_new_head_stands_on_what_an_adapter_has_learnt(adapter_dir):
    model = load_score_model(str(adapter_dir), dtype=FP32)
    body = load_causal_model(str(adapter_dir), dtype=FP32).model
    assert model.config.num_labels == 1
    torch.testing.assert_close(model.model(IDS)[0], body(IDS)[0])


def test_a_reward_models_adapter_is_merged_or_left_switchable(reward_adapter_dir):
    merged = load_score_model(str(reward_adapter_dir), dtype=FP32)
    kept = load_score_model(str(reward_adapter_dir), dtype=FP32, keep_adapter=True).eval()
    torch.testing.assert_close(merged(IDS).logits, kept(IDS).logits, rtol=1e-4, atol=1e-5)
    assert not hasattr(merged, "disable_adapter")
    with kept.disable_adapter():
        assert (merged(IDS).logits - kept(IDS).logits).abs().max() > 1e-3


def test_a_reward_models_adapter_is_refused_as_a_language_model(reward_adapter_dir):
    with pytest.raises(ModelError, match="is a reward model; give a causal language model"):
        load_causal_model(str(reward_adapter_dir), dtype=FP32)


def test_a_classifier_with_several_labels_is_no_reward_model(make_score_model, tmp_path):
    make_score_model(num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has 3 labels; a reward model has one, the score"):
        load_score_model(str(tmp_path), dtype=FP32)


def test_reward_models_are_known_by_their_folders(
    tiny_model_dir, adapter_dir, reward_adapter_dir, make_score_model, tmp_path
):
    make_score_model().save_pretrained(tmp_path / "reward")
    folders = (tmp_path / "reward", reward_adapter_dir, tiny_model_dir, adapter_dir)
    assert [is_score_model(str(folder)) for folder in folders] == [True, True, False, False]
    assert not is_score_model("owner/name")


@pytest.mark.parametrize("content", ["{}", '{"model_type": "bert"}', '{"model_type": "nonsense"}'])
def test_a_folder_that_is_no_causal_model_is_one_clear_line(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match="could be loaded from"):
        load_causal_model(str(tmp_path), dtype=FP32)


def test_weights_that_are_cut_short_are_one_clear_line(tiny_model_dir, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(tiny_model_dir, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="could be loaded from"):
        load_causal_model(str(folder), dtype=FP32)


def edit_tokenizer(source, target, **changes):
    """A copy of a model folder whose tokenizer lacks or has other special tokens."""
    shutil.copytree(source, target)
    file = target / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return str(target)


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(tiny_model_dir, tmp_path):
    folder = edit_tokenizer(tiny_model_dir, tmp_path / "copy", pad_token=None)
    assert AutoTokenizer.from_pretrained(folder).pad_token_id is None
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None


def test_a_pad_token_that_is_there_is_kept(tiny_model_dir):
    tokenizer = load_tokenizer(str(tiny_model_dir))
    assert tokenizer.pad_token == "<|endoftext|>" != tokenizer.eos_token


def test_a_tokenizer_without_an_end_token_loads_and_is_refused_with_what_to_set(
    tiny_model_dir, tmp_path
):
    folder = edit_tokenizer(tiny_model_dir, tmp_path / "copy", eos_token=None)
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ModelError, match="set eos_token"):
        Tokeniser(tokenizer, end_token_ids=[], max_length=9, max_prompt_length=3)


def test_chat_template_replaces_that_of_the_model(tiny_model_dir, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    tokenizer = load_tokenizer(str(tiny_model_dir), chat_template=str(file))
    tokeniser = Tokeniser(tokenizer, end_token_ids=[], max_length=99, max_prompt_length=50)
    messages = [({"role": role, "content": role},) for role in ("user", "assistant", "other")]
    (example,), _ = tokeniser.pairs([Pair(*messages, "f:1")])
    assert tokenizer.decode(example.prompt) == "[user]"
    assert tokenizer.decode(example.chosen) == "[assistant]<|im_end|>"


def test_a_chat_template_may_be_a_name(tiny_model_dir):
    tokenizer = load_tokenizer(str(tiny_model_dir), chat_template="chatml")
    said = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert said == "<|im_start|>user\nhi<|im_end|>\n"


def test_a_chat_template_that_cannot_be_read_is_one_clear_line(tiny_model_dir):
    with pytest.raises(ModelError, match=r"chat_template could not be read.*nowhere\.jinja"):
        load_tokenizer(str(tiny_model_dir), chat_template="nowhere.jinja")


def test_a_folder_without_a_tokenizer_is_one_clear_line(tiny_model_dir, tmp_path):
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    with pytest.raises(ModelError, match="no tokenizer could be loaded from"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(("ids", "expected"), [(7, [7]), ([7, 8], [7, 8]), (None, []), (0, [0])])
def test_every_end_token_of_the_generation_config_is_known(ids, expected, make_model):
    model = make_model()
    model.generation_config.eos_token_id = ids
    assert end_token_ids(model) == expected


def test_the_fingerprint_is_of_the_weights_and_not_of_the_adapter(make_model):
    fingerprint = weights_fingerprint(make_model())
    assert weights_fingerprint(make_model()) == fingerprint
    lora = add_lora(make_model(), r=2, alpha=4, dropout=0.0, target_modules="all-linear")
    assert weights_fingerprint(lora.get_base_model()) == fingerprint
    assert weights_fingerprint(make_model(seed=1)) != fingerprint
    assert weights_fingerprint(make_model(dtype="bfloat16")) != fingerprint
    moved = make_model()
    moved.model.layers[1].mlp.up_proj.weight.data[3, 4] *= 1.0001
    assert weights_fingerprint(moved) != fingerprint


def test_caches_go_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("PENCHANT_CACHE")
    assert default_cache_dir().parts[-2:] == (".cache", "penchant")


@pytest.fixture
def gguf_file(tiny_model_dir, make_model, tmp_path):
    """A tiny Qwen 2 and the tiny model's tokenizer in llama.cpp's format."""
    gguf = pytest.importorskip("gguf")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    vocabulary = [*sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get), "ab"]
    model = make_model("qwen2", vocab_size=len(vocabulary))
    config = model.config
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(known, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf", model


def test_a_gguf_file_is_converted_once_and_has_the_same_logits(gguf_file, tmp_path):
    file, model = gguf_file
    folder = resolve(str(file), tmp_path / "cache")
    loaded = load_causal_model(folder, dtype=FP32)
    torch.testing.assert_close(
        loaded(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert "<|im_start|>" in tokenizer.chat_template
    config = tmp_path / "cache" / "gguf"
    written = {path: path.stat().st_mtime_ns for path in config.rglob("*")}
    assert resolve(str(file), tmp_path / "cache") == folder
    assert {path: path.stat().st_mtime_ns for path in config.rglob("*")} == written


@pytest.mark.parametrize("length", [0, 10, 3000])
def test_a_gguf_file_that_is_cut_short_is_one_clear_line(gguf_file, length, tmp_path):
    file, _ = gguf_file
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"tiny\.gguf could not be read as a GGUF model"):
        resolve(str(file), tmp_path / "cache")
