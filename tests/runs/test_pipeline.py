"""A whole run on a tiny dataset: its files, its report, how it continues, and loading its student."""

from __future__ import annotations

import json
import re

import pytest
import torch
from recbole.trainer import Trainer
from recbole.utils import get_model, get_trainer

import recbole_adarec.distillation.teacher_outputs as cache
import recbole_adarec.runs.pipeline as pipeline
from recbole_adarec import AdaRecError, load_student, run_adarec
from recbole_adarec.config.resolve import full_config, resolve_user_config
from recbole_adarec.config.schema import STAGES
from recbole_adarec.config.stages import stage_config
from recbole_adarec.data.loading import load_data
from recbole_adarec.distillation.teacher_outputs import CachedTeacher, TeacherOutputCache
from recbole_adarec.model.search_space.architecture import Architecture
from recbole_adarec.storage.properties import model_defaults
from recbole_adarec.storage.recbole_checkpoint import read_checkpoint
from recbole_adarec.storage.yaml_files import load_yaml
from tests.helpers import WITH_CHOICE, make_config


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "r"
    return folder, run_adarec("tiny", config_dict={**WITH_CHOICE, "data_path": str(tiny)}, run_dir=folder)


def test_the_run_folder_holds_every_file(finished):
    folder, report = finished
    names = {path.name for path in folder.iterdir()}
    stages = {"teacher.pth", "search.pth", "student.pth"}
    assert {"config.yaml", "architecture.yaml", "report.json", "report.md", "report.html", "log.txt"} | stages <= names
    assert not [name for name in names if name.startswith(".")]
    for stage in stages:
        content = torch.load(folder / stage, weights_only=True)
        assert content["state_dict"] and content["config"]["dataset"] == "tiny"
    assert json.loads((folder / "report.json").read_text()) == report
    assert "epoch" in (folder / "log.txt").read_text()


def test_the_report_has_its_format(finished):
    folder, report = finished
    assert report["format"] == "recbole-adarec-report/1" and report["dataset"] == "tiny" and report["seed"] == 2020
    assert [m["name"] for m in report["models"]] == ["teacher", "student"]
    for model in report["models"]:
        parameters = model["parameters"]
        assert parameters["total"] == parameters["item_table"] + parameters["layers"]
        assert model["macs_per_sequence"] > 0 and model["sequences_per_second"] > 0
        assert 0 < model["latency_ms"]["batch_1_p50"] <= model["latency_ms"]["batch_1_p99"]
        assert {"recall@10", "ndcg@10", "mrr@10"} <= set(model["test"]) and "ndcg@10" in model["valid"]
    teacher, student = report["models"]
    architecture = Architecture.load(folder / "architecture.yaml")
    assert architecture.hidden_size in (8, 4) and teacher["parameters"]["item_table"] == 21 * 16
    assert student["parameters"]["item_table"] == 21 * architecture.hidden_size
    search = report["architecture"]["search"]
    assert search["cost"] == student["parameters"]["layers"] / teacher["parameters"]["layers"] <= search["cost_budget"]
    assert report["stages"]["search"]["epochs"] == 3
    assert 0 < report["architecture"]["search"]["alpha_moved"] <= 1
    assert 0 <= report["architecture"]["search"]["changed_edges"] <= 1
    assert report["architecture"]["operations"] == architecture.count()
    assert sum(map(sum, report["distillation"]["flow"])) == pytest.approx(1)


def test_validation_chooses_among_candidates_of_all_sizes(finished):
    folder, report = finished
    tried = json.loads((folder / "candidates.json").read_text())["candidates"]
    assert {row["hidden_size"] for row in tried} == {8, 4} and len(tried) > 2
    by_size = {size: [row for row in tried if row["hidden_size"] == size] for size in (8, 4)}
    finalists = [max(rows, key=lambda row: row["valid_log_likelihood"]) for rows in by_size.values()]
    assert [row for row in tried if "final_log_likelihood" in row] == sorted(finalists, key=tried.index)
    best = max(finalists, key=lambda row: row["final_log_likelihood"])
    assert best["worse_p"] == 1 and all(row["worse_p"] < 0.5 for row in finalists if row is not best)
    assert all(row["weights_bytes"] > 0 for row in tried)
    chosen = Architecture.load(folder / "architecture.yaml").to_dict()
    assert {key: best[key] for key in chosen} == chosen
    assert report["architecture"]["search"]["candidates"] == tried
    for measure in ("valid_log_likelihood", "final_log_likelihood"):
        assert f"{best[measure]:.4f}" in (folder / "report.md").read_text()


def test_config_yaml_is_the_whole_configuration_and_gives_the_same_run(finished):
    folder, _ = finished
    values = resolve_user_config(None, [str(folder / "config.yaml")], {})
    assert full_config(values) == load_yaml(folder / "config.yaml")
    assert values["seed"] == 2020 and values["search_operations"] and values["MAX_ITEM_LIST_LENGTH"] == 50
    for stage, model in STAGES.items():
        stored = torch.load(folder / f"{stage}.pth", weights_only=True)["config"]
        again = stage_config(values, stage)
        for key in model_defaults(model):
            if key not in ("architecture", "teacher_path", "supernet_path"):
                assert again[key] == stored[key], (stage, key)


def test_a_finished_stage_is_never_repeated(finished, tiny, monkeypatch):
    folder, report = finished
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pth")}
    monkeypatch.setattr("recbole_adarec.runs.stages.get_trainer", lambda *_: pytest.fail("trained again"))
    again = run_adarec("tiny", config_dict={**WITH_CHOICE, "data_path": str(tiny)}, run_dir=folder)
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pth")}
    assert [m["test"] for m in again["models"]] == [m["test"] for m in report["models"]]


@pytest.mark.parametrize(("values", "times"), [({}, 1), ({"student_kd_temperature": 2.0}, 2)])
def test_teacher_outputs_are_computed_once_where_the_same_are_needed(tiny, tmp_path, monkeypatch, values, times):
    events, clear = [], TeacherOutputCache.clear
    monkeypatch.setattr(
        cache, "CachedTeacher", lambda *args, **kw: events.append("computed") or CachedTeacher(*args, **kw)
    )
    monkeypatch.setattr(TeacherOutputCache, "clear", lambda self: events.append("cleared") or clear(self))
    run_adarec("tiny", config_dict={**WITH_CHOICE, **values, "data_path": str(tiny)}, run_dir=tmp_path / "r")
    assert events.count("computed") == times
    assert events[-1] == "cleared"  # the report has the memory


def test_a_continued_run_has_the_figures_of_an_uninterrupted_one(finished, tiny, tmp_path):
    folder, report = finished
    values = {**WITH_CHOICE, "data_path": str(tiny)}
    interrupted = tmp_path / "interrupted"
    run_adarec("tiny", config_dict=values, run_dir=interrupted)
    expected = torch.load(interrupted / "student.pth", weights_only=True)["state_dict"]
    (interrupted / "student.pth").unlink()
    (interrupted / "search.pth").unlink()
    continued = run_adarec("tiny", config_dict=values, run_dir=interrupted)
    actual = torch.load(interrupted / "student.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert [m["test"] for m in continued["models"]] == [m["test"] for m in report["models"]]


def test_an_interrupted_choice_continues_with_the_candidate_that_was_in_training(finished, tiny, tmp_path, monkeypatch):
    values, interrupted, tried = {**WITH_CHOICE, "data_path": str(tiny)}, tmp_path / "interrupted", []
    train_candidate = pipeline.Run._train_candidate

    def interrupt(self, candidate, epochs):
        tried.append((candidate, epochs))
        if len(tried) == 4:
            raise KeyboardInterrupt
        return train_candidate(self, candidate, epochs)

    monkeypatch.setattr(pipeline.Run, "_train_candidate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_adarec("tiny", config_dict=values, run_dir=interrupted)
    run_adarec("tiny", config_dict=values, run_dir=interrupted)
    assert tried[3] == tried[4] and len(tried) == len({*tried}) + 1, "a finished candidate is not trained again"
    folders = (finished[0], interrupted)
    expected, actual = (json.loads((folder / "candidates.json").read_text())["candidates"] for folder in folders)
    assert actual == expected and not (interrupted / ".candidates.pth").exists()


def test_candidates_train_for_fewer_epochs_where_an_epoch_has_many_targets(tiny, tmp_path, monkeypatch):
    epochs, build_trainer = [], pipeline.Run._build_trainer

    def record_epochs(self, config, data):
        epochs.extend([config["epochs"]] if config["model"] == "AdaRecStudent" else [])
        return build_trainer(self, config, data)

    monkeypatch.setattr(pipeline.Run, "_build_trainer", record_epochs)
    values = {**WITH_CHOICE, "data_path": str(tiny), "candidates": 1, "candidate_epochs": 4, "finalist_epochs": 6}
    for targets, expected in ((10**6, [4, 4, 6, 6, 2]), (1, [1, 1, 1, 1, 2])):  # the last is the student
        monkeypatch.setattr("recbole_adarec.runs.epochs._CANDIDATE_TARGETS", targets)
        run_adarec("tiny", config_dict=values, run_dir=tmp_path / str(targets))
        assert epochs == expected
        epochs.clear()


def test_another_configuration_in_the_same_folder_is_refused(finished, tiny):
    folder, _ = finished
    before = {path.name: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}
    with pytest.raises(AdaRecError, match="teacher_epochs is 2 there and 3 now"):
        run_adarec("tiny", config_dict={**WITH_CHOICE, "data_path": str(tiny), "teacher_epochs": 3}, run_dir=folder)
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}


def test_a_folder_that_is_no_run_is_refused(tiny, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.tex").write_text("x")
    with pytest.raises(AdaRecError, match="no run of ours"):
        run_adarec("tiny", config_dict={**WITH_CHOICE, "data_path": str(tiny)}, run_dir=tmp_path / "files")
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", [b"PK\x03\x04 not a checkpoint", b""])
def test_a_damaged_checkpoint_is_named_and_kept(finished, tiny, tmp_path, content):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(finished[0], folder)
    (folder / "teacher.pth").write_bytes(content)
    with pytest.raises(AdaRecError, match="teacher.pth is damaged"):
        run_adarec("tiny", config_dict={**WITH_CHOICE, "data_path": str(tiny)}, run_dir=folder)
    assert (folder / "teacher.pth").read_bytes() == content


def test_a_checkpoint_with_code_in_it_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"format": "recbole-adarec-model/2", "model": "AdaRecStudent", "x": Evil()}, tmp_path / "student.pth")
    with pytest.raises(AdaRecError, match="damaged or holds more"):
        load_student(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_kind_is_refused(finished, tmp_path):
    (tmp_path / "student.pth").write_bytes((finished[0] / "teacher.pth").read_bytes())
    with pytest.raises(AdaRecError, match="holds a 'AdaRecTeacher', expected 'AdaRecStudent'"):
        load_student(tmp_path)
    torch.save({"weights": torch.ones(1)}, tmp_path / "student.pth")
    with pytest.raises(AdaRecError, match="not a checkpoint of this kind"):
        load_student(tmp_path)


def test_a_loaded_student_scores_without_its_dataset(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "student.pth").write_bytes((folder / "student.pth").read_bytes())
    student = load_student(tmp_path)
    scores = student.scores([["3", "4"], ["7"]])
    assert scores.shape == (2, 21) and scores[:, 0].max() == -torch.inf and scores[:, 1:].isfinite().all()
    torch.testing.assert_close(student.scores([["7"]])[0], scores[1], rtol=1e-4, atol=1e-4)
    ranked = student.recommend(["3", "4"], k=5)
    assert len(ranked) == 5 and [s for _, s in ranked] == sorted((s for _, s in ranked), reverse=True)
    assert {token for token, _ in ranked} <= {str(i) for i in range(1, 21)}
    with pytest.raises(AdaRecError, match="unknown item '99'"):
        student.recommend(["99"])
    with pytest.raises(AdaRecError, match="expected a list"):
        student.recommend([])


def test_a_given_architecture_is_trained_without_a_search(finished, tiny, tmp_path):
    Architecture(8, (("conv_3",), ("skip",))).save(tmp_path / "given.yaml")
    values = {**WITH_CHOICE, "data_path": str(tiny), "architecture": str(tmp_path / "given.yaml")}
    report = run_adarec("tiny", config_dict=values, run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "search.pth").exists() and "search" not in report["stages"]
    assert report["architecture"]["operations"] == {"conv_3": 1, "skip": 1}
    assert report["architecture"]["search"] is None


@pytest.mark.parametrize(
    "values",
    [
        {"gamma": 0.0},
        {"layer_mapping": "left_jump"},
        {"layer_mapping": "none"},
        {"backbone": "SASRec", "n_layers": 3, "share_cells": False},
        {"backbone": "BERT4Rec", "n_layers": 3, "hidden_distance": "mse"},
        {"teacher_cache_mb": 0, "cost_budget": None, "cost": "macs"},
    ],
    ids=str,
)
def test_variants_run_to_their_report(tiny, tmp_path, values):
    report = run_adarec("tiny", config_dict={**WITH_CHOICE, "data_path": str(tiny), **values}, run_dir=tmp_path / "run")
    assert report["models"][1]["test"]["ndcg@10"] >= 0
    assert (report["distillation"] is None) == (values.get("gamma") == 0 or values.get("layer_mapping") == "none")


def test_recbole_models_train_evaluate_and_reload(tiny, tmp_path, monkeypatch):
    values = {
        **WITH_CHOICE, "data_path": str(tiny), "baselines": ["SASRec", "GRU4Rec"], "baseline_epochs": 2,
    }  # fmt: skip
    report = run_adarec("tiny", config_dict=values, run_dir=tmp_path / "run")
    assert [m["name"] for m in report["models"]] == ["teacher", "student", "SASRec", "GRU4Rec"]
    for name in ("SASRec", "GRU4Rec"):
        content = torch.load(tmp_path / "run" / f"baseline-{name}.pth", weights_only=True)
        assert content["state_dict"]
    monkeypatch.setattr("recbole_adarec.runs.stages.get_trainer", lambda *_: pytest.fail("trained again"))
    again = run_adarec("tiny", config_dict=values, run_dir=tmp_path / "run")
    assert [m["test"] for m in again["models"]] == [m["test"] for m in report["models"]]


def test_layer_weights_do_not_collapse(finished):
    folder, _ = finished
    for stage in ("search", "student"):
        content = torch.load(folder / f"{stage}.pth", weights_only=True)
        for record in content["history"]:
            v = record["teacher_layer_weights"]
            assert sum(v) == pytest.approx(1, abs=1e-4) and min(v) >= 0.5 / len(v) - 1e-6
        if stage == "search":  # a student is deployed without them
            assert content["distillation"]["mapping.teacher_weights"].tolist() == pytest.approx(v)


def test_the_page_names_the_dataset(finished):
    page = (finished[0] / "report.html").read_text()
    assert "tiny" in page and not re.search(r'src="https?://', page)


@pytest.mark.parametrize(
    ("scores", "kept_epoch"),
    [
        ([0.10, 0.30, 0.20, 0.28, 0.29], 4),  # the standard error of 0.30 over 59 rows is 0.06
        ([0.10, 0.50, 0.40, 0.45, 0.42], 3),  # that of 0.50 is 0.065, so 0.42 is worse
        ([0.10, 0.20, 0.60, 0.30, 0.20], 2),
    ],
)
def test_the_latest_epoch_within_a_standard_error_of_the_best_is_kept(tiny, monkeypatch, scores, kept_epoch):
    config = make_config("teacher", "tiny", **{**WITH_CHOICE, "teacher_epochs": 5}, data_path=str(tiny))
    data = load_data(config)
    model = get_model(config["model"])(config, data.train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    remaining = iter(scores)
    monkeypatch.setattr(Trainer, "_valid_epoch", lambda *_, **__: (next(remaining), {}))
    trainer.fit(data.train, data.valid, verbose=False)
    assert read_checkpoint(trainer.saved_model_file).epochs == kept_epoch + 1
    assert trainer.best_valid_score == max(scores)
