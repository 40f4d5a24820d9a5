"""The page is one file that opens offline, holds what matters, and runs nothing of a model's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from penchant.cli.main import main
from penchant.reporting import report
from penchant.reporting.answers import asked
from penchant.reporting.curves import panels
from penchant.reporting.figures import tiles
from penchant.reporting.reading import read_run

from .conftest import CONFIG, SUMMARY

WriteRun = Callable[..., Path]
HOSTILE = "</script><script>document.title='hacked'</script><img src=x onerror=alert(1)>&\u2028"
MAX_BYTES, MAX_SECONDS = 3_000_000, 2.0


def _page(*runs: Path, **more: Any) -> str:
    return report(*runs, **more).read_text(encoding="utf-8")


def test_untrusted_text_is_escaped_wherever_it_stands(write_run: WriteRun) -> None:
    evidence = {"evidence": {HOSTILE: HOSTILE}}
    run = write_run(
        config={"method": HOSTILE, "model": HOSTILE, "data": HOSTILE, HOSTILE: HOSTILE},
        samples=[{"step": n, "prompt": HOSTILE, "answer": HOSTILE * (n + 1)} for n in (0, 9)],
        findings=[{"step": 1, "id": HOSTILE, "severity": HOSTILE, "what": HOSTILE, **evidence}],
    )
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(_page(run))
    assert tags.count("script") == 1 and "img" not in tags


def test_nothing_is_fetched_and_only_the_pages_own_script_runs(write_run: WriteRun) -> None:
    page = _page(write_run())
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "default-src 'none'" in page and "script-src 'sha256-" in page


def test_words_that_differ_are_marked_and_findings_show_remedy_and_action(
    write_run: WriteRun,
) -> None:
    samples = [{"step": 0, "prompt": "Hi?", "answer": "go away now"},
               {"step": 100, "prompt": "Hi?", "answer": "go home now"}]  # fmt: skip
    finding = {"step": 7, "id": "drift", "severity": "warning", "what": "KL 16", "remedy": "raise",
               "evidence": {"kl": 16.25}, "action": "coefficient doubled"}  # fmt: skip
    page = _page(write_run(samples=samples, findings=[finding]))
    assert "go <del>away</del> now" in page and "go <ins>home</ins> now" in page
    for text in ("Remedy: raise", "coefficient doubled", "16.25", "step 7"):
        assert text in page


def test_changed_settings_and_a_command_that_runs_it_again(write_run: WriteRun) -> None:
    page = _page(write_run())
    changed = page.partition("Changed from the default")[2].partition("</details>")[0]
    assert "<code>beta</code>" in changed and "learning_rate" not in changed
    assert "penchant train dpo" in page and "--beta 0.3" in page and "--output RUN" in page


def test_several_runs_share_their_charts_and_a_table(write_run: WriteRun) -> None:
    a, b = write_run("a"), write_run("b", config={"method": "dpo", "beta": 0.5})
    page = _page(a, b, output=a / "both.html")
    table = page.partition("<tbody>")[2].partition("</tbody>")[0]
    assert table.count("0.5 → 0.9") == 2
    one = page.count("<svg")
    assert one == len(re.findall(r">a</text>", page.split("</body>")[0])) > 2


def test_what_several_runs_share_stands_once_and_what_differs_first(write_run: WriteRun) -> None:
    data = {"data": {"num_train": 24, "num_held_out": 6}}
    runs = [write_run(name, config={**CONFIG, "beta": beta})
            for name, beta in (("a", 0.1), ("b", 0.5))]  # fmt: skip
    for run in runs:
        (run / "data.json").write_text(json.dumps(data))
    page = _page(*runs, output=runs[0] / "both.html")
    assert page.count("on owner/small, with pairs.jsonl") == 1
    assert page.count("24 for training") == 1 and "Data of every run" in page
    differing = page.partition("The runs differ in:")[2].partition("</table>")[0]
    assert re.findall(r"<code>(\w+)</code></th><td>(.*?)</td><td>(.*?)</td>", differing) == [
        ("beta", "0.1", "0.5")
    ]


def test_a_comparison_of_three_runs_fits_a_few_screens(
    write_run: WriteRun, browser: Any, tmp_path: Path
) -> None:
    prompts = [f"Prompt {n}?" for n in range(40)]
    notes = [{"step": 0, "id": "few-records", "severity": "note", "what": "few"}] * 9

    def write(name: str) -> Path:
        samples = [
            {"step": step, "prompt": prompt, "answer": f"{said} of {prompt} " * 20}
            for step, said in ((0, "start"), (100, name))
            for prompt in prompts
        ]
        return write_run(name, samples=samples, findings=notes)

    file = report(*map(write, "abc"), output=tmp_path / "three.html")
    for width, most in ((1280, 4500), (390, 8500)):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(file.as_uri())
        size = page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        )
        print(f"{width} pixels wide: {size[1]} high")
        assert size[0] <= width and size[1] < most
        page.close()


def test_notes_are_folded_and_warnings_are_not(write_run: WriteRun) -> None:
    severities = {"few-records": "note", "duplicates": "warning"}
    findings = [{"step": 0, "id": name, "severity": severity, "what": name}
                for name, severity in severities.items()]  # fmt: skip
    page = _page(write_run(findings=findings))
    told = page.partition('<h2 id="findings">')[2].partition('<h2 id="figures">')[0]
    open_ones, _, folded = told.partition("<details><summary>1 note</summary>")
    assert "duplicates" in open_ones and "few-records" not in open_ones
    assert "few-records" in folded


def test_the_package_imports_no_torch(write_run: WriteRun) -> None:
    code = (
        "import sys; from penchant.cli.main import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    for command in (["report"], ["watch", "--once"]):
        words = [command[0], str(write_run(command[0])), *command[1:]]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_command_line_names_the_file_or_the_mistake(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["report", str(run), "--output", str(tmp_path / "no" / "x.html")]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert main(["report", str(run), "--card"]) == 1
    assert "no saved model" in capsys.readouterr().err


def test_tiles_say_what_the_run_came_to_and_how_sure_that_is(write_run: WriteRun) -> None:
    after = {"accuracy": 0.9, "num_examples": 100, "margin": 1.5}
    summary = {**SUMMARY, "evaluation_before": {"accuracy": 0.5}, "evaluation_after": after}
    samples = [{"step": step, "prompt": "p", "answer": "a", "num_tokens": 10 + step}
               for step in (0, 0, 100)]  # fmt: skip
    run = read_run(write_run(summary=summary, samples=samples))
    found = {tile.name: (tile.value, tile.note) for tile in tiles(run)}
    assert found["Held-out accuracy"] == ("90.0% ± 3.0%", "from 50.0%, 100 records")
    assert found["Margin"] == ("1.5", "")
    assert found["KL of its own answers"][0] == "4"
    assert found["Answer length"] == ("110.0", "tokens, from 10.0")
    assert found["Time"] == ("1 min 35 s", "100 steps") and found["Peak memory"][0] == "1 GiB"


def test_runs_from_one_start_stand_side_by_side_under_each_prompt(write_run: WriteRun) -> None:
    def answering(name: str, last: str) -> Path:
        samples = [{"step": 0, "prompt": "Hi?", "answer": "as it was at the start"},
                   {"step": 9, "prompt": "Hi?", "answer": last}]  # fmt: skip
        return write_run(name, samples=samples)

    runs = [read_run(answering(*one)) for one in (("a", "as it was at the end"), ("b", "No."))]
    (only,) = asked(runs)
    assert [heading for heading, _, _ in only.answers] == ["step 0", "a, step 9", "b, step 9"]
    start, near, far = (words for _, _, words in only.answers)
    assert start == [(False, "as it was at the start")]
    assert (True, "end") in near
    assert far == [(False, "No.")]  # it shares too little for marks to tell anything


def test_a_curve_that_is_one_flat_line_is_left_out(write_run: WriteRun) -> None:
    steps = range(1, 20)
    metrics = [{"step": n, "loss": 1 / n, "learning_rate": 1e-5, "grad_norm": n} for n in steps]
    (loss, norm) = panels([read_run(write_run(metrics=metrics))])
    assert (loss.title, loss.group) == ("Loss", "training")
    assert norm.title == "Norm of the gradient" and loss.lines[0].name == "training"


def test_a_chart_of_single_points_is_left_to_the_table(write_run: WriteRun) -> None:
    metrics = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.9}, {"step": 2, "eval/kl": 0.1}]
    runs = [read_run(write_run(name, metrics=metrics)) for name in "ab"]
    assert [one.title for one in panels(runs)] == ["Loss, training"]


def test_the_page_tells_how_its_model_is_loaded(write_run: WriteRun) -> None:
    run = write_run()
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    page = _page(run)
    assert f"AutoModelForCausalLM.from_pretrained(&#34;{run / 'model'}&#34;)" in page
    assert f"penchant chat {run}" in page


def test_a_report_of_2000_steps_is_small(long_run: Path) -> None:
    file = report(long_run)
    print(f"{file.stat().st_size:,} bytes")
    assert file.stat().st_size < MAX_BYTES


def test_a_report_of_2000_steps_opens_at_once_and_can_be_searched(
    long_run: Path, browser: Any
) -> None:
    address = report(long_run).as_uri()
    phone = browser.new_page(viewport={"width": 390, "height": 800})
    said: list[str] = []
    phone.on("console", lambda message: said.append(message.text))
    started = time.perf_counter()
    phone.goto(address, wait_until="load")
    seconds = time.perf_counter() - started
    print(f"{seconds:.2f} s")
    assert seconds < MAX_SECONDS
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    assert phone.locator("output").inner_text() == "10 of 20"
    phone.get_by_role("button", name="Show all").click()
    assert phone.locator(".pair:visible").count() == 20
    phone.fill("input[type=search]", "prompt 17?")
    assert phone.locator(".pair:visible").count() == 1
    assert phone.locator("output").inner_text() == "1 of 20"
    assert said == []
    phone.close()
