"""Sampled and scored answers become pairs; a run that was killed goes on where it stopped."""

from __future__ import annotations

import json

import pytest

from penchant.cli.main import main
from penchant.core.errors import ConfigError
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


def test_command_samples_a_model_and_scores_with_rewards_and_says_what_a_judge_was_asked(
    tmp_path, tiny_model_dir, capsys, serve_chat
):
    judge = serve_chat(lambda text: "Score: 5")
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "o.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS[:3]))
    reward = tmp_path / "reward.py"
    reward.write_text(
        "def zs(completions, **_):\n    return [sum(map(ord, c)) for c in completions]\n"
    )
    words = [str(prompts), "--sample", str(tiny_model_dir), "--n", "3", "--reward", f"{reward}:zs"]
    words += ["--max-completion-length", "12", "--output", str(output)]
    assert main(["data", "build", *words, "--reward", f"judge:{judge.url}"]) == 0
    said = capsys.readouterr()
    assert "form: ratings" in said.out
    assert f"judge: {len(judge.asked)} asked" in said.err
    samples = (tmp_path / "o.jsonl.samples.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["ratings"]) for line in samples] == [3, 3, 3]
    assert all(json.loads(line)["margin"] > 0 for line in output.read_text().splitlines())


def test_a_place_that_takes_no_file_is_named_before_anything_is_loaded(
    tmp_path, capsys, monkeypatch
):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    drawing, prompts = Drawing(), tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps(PROMPTS[0]) + "\n")
    monkeypatch.setattr("pathlib.Path.touch", refused)
    with pytest.raises(ConfigError, match=r"samples\.jsonl: Permission denied; set output"):
        run(tmp_path, drawing)
    assert drawing.calls == []
    monkeypatch.setattr(
        "penchant.commands.draw_pairs.Drawer", lambda *_, **__: pytest.fail("a model was loaded")
    )
    words = [str(prompts), "--sample", "m", "--reward", "length:4"]
    assert main(["data", "build", *words, "--output", str(tmp_path / "o.jsonl")]) == 1
    assert "o.jsonl.samples.jsonl: Permission denied" in capsys.readouterr().err
    assert main(["data", "build", *words, "--output", str(prompts)]) == 1
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_an_answer_that_a_reward_fails_on_is_left_out_of_the_pairs(
    tmp_path, tiny_model_dir, capsys
):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "o.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS[:3]))
    (tmp_path / "reward.py").write_text(
        "def zs(completions, **_):\n"
        "    return [None, *(sum(map(ord, text)) for text in completions[1:])]\n"
    )
    words = [str(prompts), "--sample", str(tiny_model_dir), "--n", "3"]
    words += ["--reward", f"{tmp_path / 'reward.py'}:zs", "--max-completion-length", "12"]
    assert main(["data", "build", *words, "--output", str(output)]) == 0
    assert "1 completions left out: rating missing" in capsys.readouterr().out
    lines = (tmp_path / "o.jsonl.samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["ratings"].count(None) for line in lines] == [1, 0, 0]
    assert len(output.read_text().splitlines()) == 3


def asked(tmp_path, model, *words, rows=PROMPTS[:3], reward="length:4"):
    """Build from samples, as a user types it; returns the exit status."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [str(file), "--sample", str(model), "--reward", reward, *words]
    return main(["data", "build", *given, "--output", str(tmp_path / "o.jsonl")])


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("temperature", "-1", "greater than 0"),
        ("temperature", "0", "greater than 0"),
        ("top_p", "1.5", "less than or equal to 1"),
        ("top_p", "0", "greater than 0"),
        ("top_k", "-1", "greater than or equal to 0"),
        ("max_completion_length", "0", "greater than or equal to 1"),
        ("max_prompt_length", "0", "greater than or equal to 1"),
        ("batch_size", "0", "greater than or equal to 1"),
        ("chat_template_kwargs", "tokenize=true", "no option of a template"),
    ],
)
def test_what_no_answer_is_sampled_with_is_refused_as_in_training_before_a_model_loads(
    tmp_path, model_without_weights, capsys, option, value, told
):
    assert asked(tmp_path, model_without_weights, f"--{option}", value) == 1
    said = capsys.readouterr().err
    assert option in said and told in said
    assert not (tmp_path / "o.jsonl.samples.json").exists()


REFUSING = "{{ raise_exception('no system message') if messages[0].role == 'system' else '' }}"
SYSTEM = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}


@pytest.mark.parametrize(
    ("rows", "words", "reward", "told"),
    [
        ([*PROMPTS[:3], {"prompt": 4}], ["--strict"], "length:4", "prompts.jsonl:4"),
        ([SYSTEM], ["--chat_template", "refusing.jinja"], "length:4", "no system message), such"),
        ([{"prompt": "p", "n": 1}, {"prompt": "q"}], [], "own.py:by_n", "prompts.jsonl:2 has no"),
        (PROMPTS, ["--n", "1"], "length:4", "n must be at least 2"),
    ],
    ids=["row", "template", "column", "number"],
)
def test_a_prompt_that_cannot_be_answered_or_judged_costs_no_wait_for_a_model(
    tmp_path, model_without_weights, capsys, monkeypatch, rows, words, reward, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refusing.jinja").write_text(REFUSING + "{{ messages[0].content }}")
    (tmp_path / "own.py").write_text("def by_n(completions, n):\n    return n\n")
    assert asked(tmp_path, model_without_weights, *words, rows=rows, reward=reward) == 1
    assert told in capsys.readouterr().err
    # Once it is corrected nothing stands in the way: nothing was begun.
    assert not (tmp_path / "o.jsonl.samples.json").exists()


def test_samples_that_are_all_there_are_paired_without_a_model(
    tmp_path, tiny_model_dir, model_without_weights, capsys
):
    (tmp_path / "own.py").write_text(
        "def codes(completions):\n    return [*map(hash, completions)]\n"
    )
    words = ["--n", "2", "--max_completion_length", "8"]
    again = {"reward": f"{tmp_path / 'own.py'}:codes"}
    assert asked(tmp_path, tiny_model_dir, *words, **again) == 0
    pairs = (tmp_path / "o.jsonl").read_bytes()
    (tmp_path / "o.jsonl").unlink()
    header = tmp_path / "o.jsonl.samples.json"
    header.write_text(header.read_text().replace(str(tiny_model_dir), str(model_without_weights)))
    assert asked(tmp_path, model_without_weights, *words, **again) == 0
    assert (tmp_path / "o.jsonl").read_bytes() == pairs
    (tmp_path / "o.jsonl").unlink()
    assert asked(tmp_path, model_without_weights, *words, "--seed", "3", **again) == 1
    assert "was made with seed 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sample", "m"], "--sample needs --reward"),
        (["--n", "3"], "--n goes only with --sample"),
        (["--sample", "m", "--form", "votes"], "--form goes only without --sample"),
    ],
)
def test_options_that_do_not_go_together_are_named(tmp_path, capsys, words, told):
    assert main(["data", "build", "p.jsonl", "--output", str(tmp_path / "o.jsonl"), *words]) == 1
    assert told in capsys.readouterr().err
