"""A reward reads the whole of what was said."""

from __future__ import annotations

import copy

from penchant.data.prompts import Prompt
from penchant.models.load import load_tokenizer
from penchant.rl.rewards.samples import make_sample
from penchant.rl.sampling.base import Completion


def test_tags_that_are_special_tokens_reach_a_text_reward_and_marks_do_not(tiny_model_dir):
    tokenizer = copy.deepcopy(load_tokenizer(str(tiny_model_dir)))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    asked = Prompt("2 + 2?", {"answer": "4"}, "prompts.jsonl:1")
    answer = "<think>easy</think>4"
    end, ids = tokenizer.eos_token_id, tokenizer(answer, add_special_tokens=False)["input_ids"]
    prompt_ids = tokenizer("2 + 2?<think>", add_special_tokens=False)["input_ids"]
    for completion in (Completion([*ids, end], [], True), Completion(ids, [], False)):
        sample = make_sample(asked, prompt_ids, completion, tokenizer)
        assert sample.completion == answer
        assert sample.rendered == "2 + 2?<think>"
        assert (sample.fields, sample.where) == ({"answer": "4"}, "prompts.jsonl:1")
    other_end = tokenizer.convert_tokens_to_ids("</think>")  # any token may end an answer
    ended = make_sample(asked, prompt_ids, Completion([*ids[:-1], other_end], [], True), tokenizer)
    assert ended.completion == "<think>easy</think>"
