"""Tuning: spaces are read and checked; trials are recorded, share stages and continue, with hyperopt and with Ray."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from recbole_adarec.cli import main, parse_arguments
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.storage.properties import PROPERTIES
from recbole_adarec.storage.yaml_files import load_yaml
from recbole_adarec.studies.tuning import trials
from recbole_adarec.studies.tuning.space import as_params, draw, read_space, values_to_check
from recbole_adarec.studies.tuning.trials import TuningStudy, objective_function, stage_digest

SMALL = {
    "teacher_epochs": 1, "search_epochs": 1, "student_epochs": 2, "hidden_size": 8, "block_num": 1,
    "distilled_layers": 2, "cost_budget": None, "candidates": 1, "candidate_sizes": None,
    "train_batch_size": 400, "show_progress": False,
    "threads": 1,
}  # fmt: skip


def arguments(tiny: Path, *more: str) -> list[str]:
    values = [f"--{key}={'~' if value is None else value}" for key, value in SMALL.items()]
    return ["tune", "--dataset=tiny", f"--data_path={tiny}", *values, *more]


# ---------------------------------------------------------------------- spaces


def test_recboles_lines_and_yaml_give_the_same_space():
    Path("space.params").write_text(
        "# RecBole's lines\nstudent_gamma choice [0.0, 0.5]\nlearner choice [adam,adamw]\n"
        "student_learning_rate loguniform -8,-4\nstudent_epochs quniform 2,10,2\nitem_table_rate choice [None, 1.5]\n"
    )
    Path("space.yaml").write_text(
        "choice: {student_gamma: [0.0, 0.5], learner: [adam, adamw], item_table_rate: [~, 1.5]}\n"
        "loguniform: {student_learning_rate: [-8, -4]}\nquniform: {student_epochs: [2, 10, 2]}\n"
    )
    space = read_space("space.params")
    assert space == read_space("space.yaml")
    for params in draw(space, "random", 50, seed=1):
        assert set(params) == {key for keys in space.values() for key in keys}
        assert params["student_epochs"] in (2, 4, 6, 8, 10) and isinstance(params["student_epochs"], int)
        assert 0.0003 < params["student_learning_rate"] < 0.0184


def test_a_space_is_never_evaluated(tmp_path):
    trap = tmp_path / "executed"
    Path("bad.params").write_text(f"learner choice [__import__('pathlib').Path('{trap}').touch()]\n")
    (value,) = read_space("bad.params")["choice"]["learner"]
    assert value.startswith("__import__") and not trap.exists()


def test_a_longer_study_starts_with_the_draws_of_a_shorter_one():
    space = {"choice": {"a": [1, 2], "b": ["x", "y", "z"]}}
    assert len(draw(space, "exhaustive", 99, seed=0)) == 6 == len({str(p) for p in draw(space, "exhaustive", 99, 0)})
    space["uniform"] = {"c": [0, 1]}
    assert draw(space, "random", 9, seed=4)[:5] == draw(space, "random", 5, seed=4) != draw(space, "random", 5, seed=5)


def test_lists_among_choices_stay_lists():
    assert as_params({}, {"operations": ("conv_3", "skip")}) == {"operations": ["conv_3", "skip"]}


def test_the_default_space_changes_only_the_student():
    space = read_space("tuning/student.yaml")
    values = resolve_user_config("ml-100k", [], {})
    for key, value in values_to_check(space):
        resolve_user_config(None, [], values | {key: value})
    for params in draw(space, "random", 5, seed=0):
        for stage in ("teacher", "search"):
            assert stage_digest(values | params, stage) == stage_digest(values, stage)
    assert (PROPERTIES / "tuning/student.yaml").is_file()


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("gamma choise [0, 1]", [], "unknown type 'choise'"),
        ("gamma choice 3", [], "gamma is 3, expected a list"),
        ("gamma uniform 1,0", [], "low below high"),
        ("gamma uniform 0,1,2", [], "expected uniform of low, high"),
        ("gama choice [0, 1]", [], "unknown key 'gama'"),
        ("gamma choice [0, 7]", [], "gamma in config_dict is 7"),
        ("gamma uniform 0,1", ["--algo=exhaustive"], "exhaustive takes choices alone"),
        ("gamma choice [0, 1]", ["--tool=optuna"], "unknown tool 'optuna'; known are hyperopt, ray"),
        ("gamma choice [0, 1]", ["--tool=ray", "--algo=bayes"], "bayes is hyperopt's"),
        ("gamma choice [0, 1]", ["--workers=2"], "--tool=ray"),
        ("gamma choice [0, 1]", ["--run_dir=here"], "leave out run_dir"),
        ("", [], "holds no key to tune"),
    ],
)
def test_wrong_input_is_refused_in_one_line(text, more, words, capsys):
    Path("space.params").write_text(text)
    assert main(["tune", "--params_file=space.params", *more]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not Path("tuning").exists()


def test_a_missing_package_is_named_in_one_line(monkeypatch, capsys):
    Path("space.params").write_text("gamma choice [0, 1]")
    for tool, module in (("hyperopt", "hyperopt"), ("ray", "pyarrow")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setitem(sys.modules, "ray", sys.modules.get("ray", sys))
        assert main(["tune", f"--tool={tool}", "--params_file=space.params"]) == 2
        error = capsys.readouterr().err
        assert f"{tool} needs {module}" in error and "[tune]" in error and error.count("\n") == 1


# ---------------------------------------------------------------------- shared stages


def test_a_stage_is_shared_by_the_values_that_it_reads_alone():
    values = resolve_user_config("ml-100k", [], {})

    def same(stage: str, **change: object) -> bool:
        return stage_digest(resolve_user_config("ml-100k", [], change), stage) == stage_digest(values, stage)

    for later in ({"student_gamma": 0.1}, {"student_epochs": 3}, {"init_from_supernet": True}, {"latency_repeats": 5}):
        assert same("teacher", **later) and same("search", **later)
    for search_values in ({"gamma": 0.1}, {"cost_budget": 0.4}, {"search_epochs": 3}, {"candidates": 2}):
        assert same("teacher", **search_values) and not same("search", **search_values)
    for teacher_values in ({"seed": 1}, {"teacher_epochs": 3}, {"epochs": 3}, {"backbone": "SASRec"}, {"topk": [5]},
                       {"user_inter_num_interval": "[5,inf)"}, {"valid_metric": "MRR@10"}):  # fmt: skip
        assert not same("teacher", **teacher_values) and not same("search", **teacher_values)


# ---------------------------------------------------------------------- hyperopt


def records(folder: str = "tuning/tiny") -> list[dict]:
    return json.loads(Path(folder, "study.json").read_text())["trials"]


def test_a_study_goes_on_after_a_failure_and_after_a_kill(tiny, monkeypatch, capsys):
    pytest.importorskip("hyperopt")
    Path("space.params").write_text("student_gamma choice [0.0,0.5]\ndistilled_layers choice [2,99]\n")
    started: list[str] = []
    train = trials.Run.train

    def counted(self, until="student"):
        if until == "student":
            started.append(str(self.folder.path))
            if len(started) == 2 and len(set(started)) == 2:  # within the second trial that has no error
                raise KeyboardInterrupt
        return train(self, until)

    monkeypatch.setattr(trials.Run, "train", counted)
    command = arguments(tiny, "--params_file=space.params")
    assert main(command) == 130
    assert "finished trials are kept" in capsys.readouterr().err
    ended = {path: path.stat().st_mtime_ns for path in Path("tuning/tiny/trials").glob("*.json")}
    assert sum(json.loads(path.read_text())["status"] == "finished" for path in ended) == 1
    assert main(command) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in ended.items()), "no finished trial is repeated"
    assert len(started) == 3 and len(set(started)) == 2
    study = records()
    assert [record["status"] for record in study] == ["finished", "finished", "failed", "failed"]
    assert all("99 of" in record["error"] for record in study[2:])
    assert study[0]["score"] >= study[1]["score"] > 0
    shared = list(Path("tuning/tiny/shared").glob("*.pth"))
    assert len(shared) == 2, "one teacher and one search for both"
    best = load_yaml(Path("tuning/tiny/best.yaml"))
    assert best["student_gamma"] == study[0]["params"]["student_gamma"] and best["teacher_epochs"] == 1
    assert resolve_user_config(None, ["tuning/tiny/best.yaml"], {})["student_epochs"] == 2
    stored = yaml.safe_load((Path("tuning/tiny") / study[0]["run_dir"] / "config.yaml").read_text())
    assert {key: stored[key] for key in best} == best


def test_a_continued_study_draws_the_same_trials(tiny, monkeypatch):
    """Records are written without runs: hyperopt's draws depend on the seed and on the records alone."""
    pytest.importorskip("hyperopt")
    Path("space.yaml").write_text("uniform: {student_gamma: [0, 1]}\nchoice: {student_dropout_prob: [0.0, 0.1]}\n")
    drawn: list[dict] = []

    def answer(self, params, *_, **__):
        if (record := self.record(params)) is None:
            drawn.append(params)
            if len(drawn) == 4:
                return self.write_record(params, "failed", None, error="planted")
            record = self.write_record(
                params, "finished", 1 - abs(params["student_gamma"] - 0.6), valid={}, test={}, scores=[]
            )
        return record

    monkeypatch.setattr(TuningStudy, "trial", answer)
    for algo in ("random", "bayes"):
        for number in (8, 12):
            drawn.clear()
            command = ["--params_file=space.yaml", f"--algo={algo}", f"--max_evals={number}", "--early_stop=99"]
            assert main(arguments(tiny, *command, f"--output={algo}")) == 0
            assert len(drawn) == (8 if number == 8 else 4), "the first eight have records"
        assert len(records(f"{algo}/tiny")) == 12 and records(f"{algo}/tiny")[-1]["status"] == "failed"


def test_recboles_tuning_takes_the_models_and_the_objective_of_this_package(tiny, monkeypatch):
    pytest.importorskip("hyperopt")
    from recbole.trainer import HyperTuning

    monkeypatch.setattr(sys, "argv", ["recbole"])
    Path("fixed.yaml").write_text(yaml.safe_dump(SMALL | {"dataset": "tiny", "data_path": str(tiny)}))
    space = {"choice": {"student_gamma": [0.0, 0.5]}}
    tuning = HyperTuning(objective_function, params_dict=space, fixed_config_file_list=["fixed.yaml"])
    tuning.run()
    assert len(tuning.params2result) == 2 and tuning.model == "AdaRecStudent" and tuning.best_score > 0
    quick_start = pytest.importorskip("recbole.quick_start")
    Path("alone.yaml").write_text(yaml.safe_dump({
        "model": "AdaRecStudent", "dataset": "tiny", "data_path": str(tiny), "epochs": 1, "hidden_size": 8,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "metrics": ["NDCG"], "valid_metric": "NDCG@10",
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    }))  # fmt: skip
    space = {"choice": {"learning_rate": [0.001, 0.01]}}
    tuning = HyperTuning(quick_start.objective_function, params_dict=space, fixed_config_file_list=["alone.yaml"])
    tuning.run()
    assert len(tuning.params2result) == 2 and tuning.best_score > 0


# ---------------------------------------------------------------------- Ray


def test_ray_runs_trials_side_by_side_and_repeats_none(tiny, monkeypatch):
    pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    Path("space.params").write_text("student_gamma choice [0.0,0.5]\ndistilled_layers choice [2,99]\n")
    files, values = parse_arguments(arguments(tiny)[1:])
    study = TuningStudy(resolve_user_config(None, files, values), "tuning/tiny")
    assert study.trial({"student_gamma": 0.0, "distilled_layers": 2})["status"] == "finished"
    first = {path: path.stat().st_mtime_ns for path in Path("tuning/tiny").rglob("*.*") if path.suffix != ".lock"}
    assert main(arguments(tiny, "--params_file=space.params", "--tool=ray", "--workers=2", "--scheduler=fifo")) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in first.items()), "the finished trial is not repeated"
    study = records()
    assert [record["status"] for record in study] == ["finished", "finished", "failed", "failed"]
    assert len(study[0]["scores"]) == 2 and len(list(Path("tuning/tiny/shared").glob("*.pth"))) == 2
