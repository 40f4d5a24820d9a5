"""The way to multiply: chosen once per machine, and the same after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.models import products

MKL = dict.fromkeys(products.KINDS, "MKL")


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path))
    monkeypatch.setattr(products, "_measured", {})
    monkeypatch.setattr(products, "has_onednn", lambda: True)


def test_the_choice_is_measured_once_and_kept_for_later_runs(monkeypatch: pytest.MonkeyPatch):
    ways = ("MKL, weights first", "oneDNN", "MKL", "oneDNN")
    first = dict(zip(products.KINDS, ways, strict=True))
    monkeypatch.setattr(products, "measure", lambda: first)
    assert products.faster_way(products.A_FEW) is products.weights_first
    assert products.faster_way(products.A_FEW + 1) is products.onednn
    assert products.faster_way(products.SAMPLING + 1) is None
    assert products.faster_way(1, vocabulary=True) is products.onednn
    assert products.measured_products() == first
    products._measured.clear()  # as in a new process
    monkeypatch.setattr(products, "measure", lambda: pytest.fail("measured again"))
    assert products.faster_way(1) is products.weights_first


def test_processes_that_measure_side_by_side_take_the_same(tmp_path: Path):
    path = tmp_path / "choice.json"
    products._keep(MKL, path)
    products._keep(dict.fromkeys(products.KINDS, "oneDNN"), path)
    assert json.loads(path.read_text())["choice"] == MKL
    assert [p.name for p in tmp_path.iterdir()] == ["choice.json"]


def test_processors_of_one_name_that_differ_in_instructions_choose_apart(
    monkeypatch: pytest.MonkeyPatch,
):
    before = products._machine()
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "other")
    assert products._machine() != before


def test_a_broken_file_in_the_cache_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path, caplog):
    monkeypatch.setattr(products, "measure", lambda: MKL)
    products.faster_way(1)
    (path,) = (tmp_path / "products").iterdir()
    for broken in ("{", json.dumps({"choice": {**MKL, "vocabulary": "by hand"}})):
        path.write_text(broken)
        products._measured.clear()
        caplog.clear()
        assert products.faster_way(1) is None
        assert str(path) in caplog.text


def test_without_the_kernels_nothing_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "has_onednn", lambda: False)
    assert products.faster_way(1) is None
    assert products.measured_products() == {}


@pytest.mark.skipif(not products.has_onednn(), reason="no oneDNN on this processor")
def test_the_probe_names_the_fastest_way_for_each_kind(monkeypatch: pytest.MonkeyPatch):
    """The clock is replaced: every kind's fastest is known, and by how much."""
    seconds = {"MKL": 1.04, "MKL, weights first": 1.0, "oneDNN": 2.0}
    assert _measured_by(seconds, monkeypatch) == MKL  # by less than noise
    seconds["MKL"] = 1.06
    chosen = _measured_by(seconds, monkeypatch)
    assert chosen["a few rows"] == chosen["rows of sampling"] == "MKL, weights first"
    assert chosen["rows of passes"] == chosen["vocabulary"] == "MKL"  # many rows are not turned
    seconds["oneDNN"] = 0.9
    assert _measured_by(seconds, monkeypatch) == dict.fromkeys(MKL, "oneDNN")


def _measured_by(seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the probe chooses on a machine where each way takes so long."""
    now = 0.0

    def slow(name: str) -> products.Product:
        def multiply(x, weight, bias):
            nonlocal now
            now += seconds[name]
            return x.new_empty(len(x), len(weight))

        return multiply

    with monkeypatch.context() as patch:
        patch.setattr(products, "WAYS", {name: slow(name) for name in products.WAYS})
        patch.setattr(products.time, "perf_counter", lambda: now)
        return products.measure()
