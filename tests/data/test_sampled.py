"""Sampled and scored answers become pairs; a run that was killed goes on where it stopped."""

from __future__ import annotations

import json

import pytest

from penchant.data import build_from_samples
from penchant.data.records import DataError

PROMPTS = [{"prompt": f"q{n}"} for n in range(10)]


class Drawing:
    """Answers by prompt and seed; stops after some calls."""

    def __init__(self, stop_after=None):
        self.calls, self.stop_after = [], stop_after

    def sample(self, prompts, n, seed):
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append([prompt.prompt for prompt in prompts])
        return [[f"{prompt.prompt} {seed} {i}" for i in range(n)] for prompt in prompts]

    def score(self, prompts, answers):
        assert all(text.startswith(p.prompt) for p, text in zip(prompts, answers, strict=True))
        return [float(text[-1]) for text in answers]


def run(tmp_path, drawing, name="p.jsonl", **options):
    options = {"n": 3, "batch_size": 4, **options}
    return build_from_samples(
        PROMPTS, tmp_path / name, sample=drawing.sample, score=drawing.score, **options
    )


def test_best_is_paired_with_worst_and_the_samples_are_kept(tmp_path):
    built = run(tmp_path, Drawing())
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert built.written == len(rows) == 10
    assert (rows[0]["chosen"], rows[0]["rejected"], rows[0]["margin"]) == ("q0 0 2", "q0 0 0", 2.0)
    samples = (tmp_path / "p.jsonl.samples.jsonl").read_text().splitlines()
    assert len(samples) == 10 and json.loads(samples[3])["where"] == "list:4"


@pytest.mark.parametrize("torn", [b"", b'{"prompt": "q4", "compl', b'{"prompt": "q4"}\n'])
def test_killed_run_goes_on_and_gives_the_same_bytes(tmp_path, torn):
    run(tmp_path, Drawing(), "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Drawing(stop_after=1))
    assert not (tmp_path / "p.jsonl").exists()
    with (tmp_path / "p.jsonl.samples.jsonl").open("ab") as stream:
        stream.write(torn)
    drawing = Drawing()
    run(tmp_path, drawing)
    assert drawing.calls == [["q4", "q5", "q6", "q7"], ["q8", "q9"]]
    whole, resumed = (tmp_path / f"{n}.samples.jsonl" for n in ("whole.jsonl", "p.jsonl"))
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.parametrize(
    ("options", "told"),
    [({"n": 2}, "n 3"), ({"seed": 5}, "seed 0"), ({"about": {"model": "x"}}, "model None")],
)
def test_samples_of_other_settings_are_not_mixed(tmp_path, options, told):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Drawing(stop_after=1))
    with pytest.raises(DataError, match=f"was made with {told}"):
        run(tmp_path, Drawing(), **options)


def test_one_answer_makes_no_pair(tmp_path):
    with pytest.raises(DataError, match="n must be at least 2"):
        run(tmp_path, Drawing(), n=1)
