"""The library that multiplies: chosen once per machine, and the same after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.models import products

MKL = {"many rows": "MKL", "few rows": "MKL"}


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path))
    monkeypatch.setattr(products, "_measured", {})
    monkeypatch.setattr(products, "has_onednn", lambda: True)


def test_the_choice_is_measured_once_and_kept_for_later_runs(monkeypatch: pytest.MonkeyPatch):
    first = {"many rows": "MKL", "few rows": "oneDNN"}
    monkeypatch.setattr(products, "measure", lambda: first)
    assert not products.onednn_is_faster(products.FEW_ROWS + 1)
    assert products.onednn_is_faster(products.FEW_ROWS)
    assert products.measured_products() == first
    products._measured.clear()  # as in a new process
    monkeypatch.setattr(products, "measure", lambda: pytest.fail("measured again"))
    assert products.onednn_is_faster(1)


def test_processes_that_measure_side_by_side_take_the_same(tmp_path: Path):
    path = tmp_path / "choice.json"
    products._keep(MKL, path)
    products._keep({"many rows": "oneDNN", "few rows": "oneDNN"}, path)
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
    products.onednn_is_faster(1)
    (path,) = (tmp_path / "products").iterdir()
    path.write_text("{")
    products._measured.clear()
    assert not products.onednn_is_faster(1)
    assert str(path) in caplog.text


def test_without_the_kernels_nothing_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "has_onednn", lambda: False)
    assert not products.onednn_is_faster(1)
    assert products.measured_products() == {}


@pytest.mark.skipif(not products.has_onednn(), reason="no oneDNN on this processor")
def test_the_probe_names_a_library_for_each_kind():
    choice = products.measure()
    assert set(choice) == {"many rows", "few rows"}
    assert set(choice.values()) <= {"MKL", "oneDNN"}
