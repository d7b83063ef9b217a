"""The benchmark: its measurements, tables and file on a tiny dataset, its instruments and its synthetic data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_adarec.cli import main
from recbole_adarec.studies.benchmark import benchmark, instruments
from recbole_adarec.studies.benchmark.benchmark import PARTS, run_benchmark
from recbole_adarec.studies.benchmark.instruments import (
    PeakMemory,
    Stopwatch,
    quartiles,
    replaced,
    synthetic_interactions,
)
from recbole_adarec.studies.benchmark.sizes import Sizes

SMALL = Sizes(2, 32, 2, 4, 3, 2, 3, ((500, 40), (1_000, 40)), 4, 5, 2_000, 5)
MODEL = {
    "hidden_size": 8,
    "block_num": 1,
    "dilations": [1],
    "distilled_layers": 1,
    "search_hidden_size": 4,
    "cells": 1,
    "nodes": 2,
    "operations": ["conv_3", "skip"],
    "cost_budget": None,
    "MAX_ITEM_LIST_LENGTH": 6,
    "train_batch_size": 64,
    "show_progress": False,
}


def error_line(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command prints."""
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def measurements(value):
    """All medians of a result; checks that each is complete."""
    if isinstance(value, dict) and "median" in value:
        assert set(value) == {"median", "q1", "q3", "n"} and value["n"] >= 1
        assert value["q1"] <= value["median"] <= value["q3"]
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [measurement for each in inner for measurement in measurements(each)]


def test_all_parts_and_their_file(tiny, tmp_path, capsys):
    output = tmp_path / "results" / "figures.json"
    before = set(Path.cwd().iterdir())
    result = run_benchmark([], {"dataset": "tiny", "data_path": str(tiny), **MODEL}, PARTS, SMALL, output)
    assert json.loads(output.read_text()) == result
    assert list(result) == ["format", "machine", "quick", *PARTS]
    assert result["format"] == "recbole-adarec-benchmark/1" and result["quick"] is False
    assert {"cpu", "cores", "threads", "torch", "python"} <= set(result["machine"])

    teacher = result["teacher"]
    sizes = [teacher[name]["parameters"]["total"] for name in ("ours", "recbole")]
    assert min(sizes) > 0.8 * max(sizes)  # RecBole's has one linear layer more, a large part of a model this small
    assert teacher["ours"]["ours_against_it"]["median"] == 1

    search = result["search"]
    for side in ("weights", "alpha"):
        parts = search[side]["parts_ms"]
        assert {
            "building the batch",
            "encode",
            "teacher outputs",
            "item losses, with gradient",
            "backward",
            "rest",
        } <= (set(parts))
        assert all(part["median"] >= 0 for part in parts.values())
    assert "optimizer" in search["weights"]["parts_ms"] and "optimizer" not in search["alpha"]["parts_ms"]
    assert "alpha optimizer" in search["alpha"]["parts_ms"] and search["epoch"]["ratio"]["median"] > 0

    for name in ("teacher", "student"):
        assert result["inference"][name]["batch_1_p50_ms"]["n"] == SMALL.rounds

    for cell, (interactions, items) in zip(result["growth"], SMALL.cells, strict=True):
        assert (cell["interactions"], cell["catalog"]) == (interactions, items)
        assert cell["targets"] == interactions - 3 * cell["users"]  # the first item has no history, two are held out
        assert min(cell["peak_mb"].values()) > 50
        assert cell["search"]["item_loss"] in ("full", "chunked")
    assert result["ranking"]["catalog"] == 2_000 and result["ranking"]["scored"]["median"] <= 1
    assert len(measurements(result)) > 50
    tables = capsys.readouterr().out
    for words in ("Teacher training", "Search step", "Inference", "Growth on synthetic data"):
        assert words in tables
    # No other file is written, and no setting is changed.
    assert set(Path.cwd().iterdir()) - before == {output.parent}
    assert not torch.is_anomaly_enabled()


def test_parts_sum_to_the_step(tiny, tmp_path, monkeypatch):
    """The parts and the rest make up the step, and no time is counted twice."""
    watches = []
    monkeypatch.setattr(benchmark, "Stopwatch", lambda: watches.append(Stopwatch()) or watches[-1])
    measured = benchmark.Benchmark([], {"dataset": "tiny", "data_path": str(tiny), **MODEL}, SMALL, tmp_path)
    result = measured.measure("search")
    for side in ("weights", "alpha"):
        parts = result[side]["parts_ms"]
        # Quartiles: a step takes a few milliseconds here, and the system may interrupt it for fifty.
        assert 0.3 * result[side]["step_ms"]["q1"] < sum(part["q3"] for part in parts.values())
        assert sum(part["q1"] for part in parts.values()) < 3 * result[side]["step_ms"]["q3"]
        assert parts["rest"]["q1"] >= 0
    assert any(watch.ms for watch in watches) and any(not watch.ms for watch in watches)


def test_the_stopwatch_counts_nested_parts_once_and_restores_the_functions(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(instruments, "clock", lambda: now[0])

    class Work:
        def inner(self):
            now[0] += 3

        def outer(self):
            now[0] += 1
            self.inner()
            self.inner()

        def fails(self):
            now[0] += 5
            raise ValueError

    work, watch = Work(), Stopwatch()
    with watch.timing([("inner", work, "inner"), ("outer", work, "outer"), ("fails", Work, "fails")]):
        work.outer()
        with pytest.raises(ValueError):
            work.fails()
    assert watch.ms == {"inner": 6000, "outer": 1000, "fails": 5000}
    assert vars(work) == {} and not hasattr(Work.fails, "__wrapped__")


def test_a_replaced_attribute_is_restored():
    module = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError), replaced(module, "forward", None), replaced(torch.Tensor, "backward", None):
        assert module.forward is None and torch.Tensor.backward is None
        raise RuntimeError
    assert "forward" not in vars(module) and module(torch.zeros(1, 2)).shape == (1, 2)
    assert callable(torch.Tensor.backward)


@pytest.mark.parametrize(("interactions", "items"), [(5_000, 100), (1_000, 1_000), (1_000, 3_000)])
def test_synthetic_items_follow_zipfs_law_and_every_item_occurs(interactions, items):
    table = synthetic_interactions(interactions, items)
    counts = table["item_id:token"].value_counts()
    assert len(table) == interactions and len(counts) == min(items, interactions)
    assert table["item_id:token"].between(0, items - 1).all()
    assert table["user_id:token"].nunique() == interactions // 50
    if interactions > items:  # some are popular
        assert counts.iloc[0] > 5 * counts.median()
    assert table.equals(synthetic_interactions(interactions, items))


def test_quartiles_have_four_digits():
    assert quartiles([4.0]) == {"median": 4.0, "q1": 4.0, "q3": 4.0, "n": 1}
    assert quartiles([1.0, 2.0, 3.0, 4.0, 123456.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "n": 5}


def test_peak_memory_includes_memory_that_was_freed_again():
    with PeakMemory() as before:
        pass
    with PeakMemory() as peak:
        np.ones(30_000_000)  # 240 MB
    assert before.mb + 150 < peak.mb < before.mb + 1000


def test_the_subcommand_passes_its_arguments(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr(benchmark, "run_benchmark", lambda *args: calls.append(args))
    assert main(["benchmark"]) == 0
    assert main(["benchmark", "--quick", "--parts=[search]", f"--output={tmp_path / 'x.json'}", "--seed=3"]) == 0
    assert calls == [
        ([], {}, list(PARTS), benchmark.FULL, "benchmark.json"),
        ([], {"seed": 3}, ["search"], benchmark.QUICK, str(tmp_path / "x.json")),
    ]
    capsys.readouterr()
    assert main(["benchmark", "--help"]) == 0
    assert "--quick" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench"], "unknown subcommand 'bench'; the nearest is 'benchmark'"),
        (["benchmark", "again"], "argument 'again' is not of the form --key=value"),
        (["benchmark", "--parts=[teacher, speed]"], "unknown part 'speed'; known are teacher, search"),
        (["benchmark", "--parts=[]"], "parts is empty"),
        (["benchmark", "--quik"], "argument '--quik' has no value"),
        (["--quick"], "unknown key 'quick'"),
        (["benchmark", "--seeed=1"], "unknown key 'seeed'"),
        (["benchmark", "--threads=0"], "threads"),
        (["benchmark", "--output=.", "--parts=[growth]"], "cannot write ."),
        (["benchmark", "--dataset=nowhere"], "unknown dataset 'nowhere'"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(arguments, words, capsys):
    Path("benchmark.json").write_text("an older one")
    assert words in error_line(*arguments, capsys=capsys)
    assert Path("benchmark.json").read_text() == "an older one"
