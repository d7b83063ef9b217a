"""The choice among several teachers: members, records, and how it continues."""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from recbole.utils import get_model

from recbole_adarec import distributed, run_adarec
from recbole_adarec.config.candidates import teacher_candidates
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.per_user import unserved_prior
from recbole_adarec.runs import candidate_training, epochs
from recbole_adarec.runs.pipeline import Run
from recbole_adarec.storage.files import plain
from recbole_adarec.storage.model_files import load_state
from recbole_adarec.storage.yaml_files import load_yaml
from recbole_adarec.trainer.base import StageTrainer
from tests.helpers import SMALL, refused

NAMES = ["CausalBSARec", "LRURec", "NextItNet"]
FEW = {**SMALL, "trial_epochs": 1, "teacher_epochs": 3, "most_members": 2, "teacher_learning_rate": 0.01}


def run(tiny: Path, folder: str, **values):
    values = {**FEW, "backbone": NAMES, "data_path": str(tiny), "threads": 1, "seed": 2020, **values}
    return run_adarec(dataset="tiny", config_dict=values, run_dir=folder)


def figures(folder: str) -> dict:
    report = json.loads((Path(folder) / "report.json").read_text())
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in report["teacher_candidates"]]
    return {"candidates": rows, "models": [(row["valid"], row["test"]) for row in report["models"]]}


def test_several_backbones_give_a_mean_of_those_that_validation_chooses(tiny):
    report = run(tiny, "run")
    content = load_state("run/teacher.pth", expected="AdaRecTeacher")
    rows = {row["name"]: row for row in report["teacher_candidates"]}
    assert list(rows) == NAMES
    members = [name for name, row in rows.items() if row["dropped"] is None]
    assert 1 <= len(members) <= 2 and report["models"][0]["kind"].split(" + ") == [
        member["config"]["backbone"] for member in content["config"]["members"]
    ]
    for name, row in rows.items():
        assert (row["weight"] is not None) == (name in members) == ("test" in row)
        assert row["epochs"] == (1 if str(row["dropped"]).startswith("after first round: 2 others make") else 3)
    assert "member" in Path("run/report.md").read_text()
    assert not list(Path("run").glob(".*.pth"))  # the trainings of candidates are gone


@pytest.mark.parametrize("size", ["small", "middle", "large"])
def test_a_place_that_is_left_goes_to_a_second_seed(tiny, monkeypatch, size):
    if size != "small":
        monkeypatch.setattr(epochs, "_TARGETS_OF_A_MEMBER", 1)
    if size == "large":
        monkeypatch.setattr(epochs, "_LARGE", 1)
    useless = {"backbone": "NextItNet", "learning_rate": 1e-9}
    run(tiny, "run", backbone=["LRURec", useless, useless])
    rows = {row["name"]: row for row in figures("run")["candidates"]}
    assert rows["NextItNet-1"]["dropped"] and rows["NextItNet-2"]["dropped"]
    assert ("LRURec-seed2" in rows) == (size == "middle")
    if size == "middle":
        first, second = rows["LRURec"], rows["LRURec-seed2"]
        assert first["values"] == second["values"] and first["epochs"] == second["epochs"] == 3
        assert first["log_likelihood"] != second["log_likelihood"]
        assert second["dropped"] is None or str(second["dropped"]).startswith("after last round: with it")


def test_the_first_round_trains_a_part_of_large_data(tiny, monkeypatch):
    monkeypatch.setattr(epochs, "_LARGE", 1)
    shares, windows = {}, StageTrainer.windows

    def recorded(self, train_data):
        shares.setdefault(self.stage, []).append(self.window_share)
        return windows(self, train_data)

    monkeypatch.setattr(StageTrainer, "windows", recorded)
    run(tiny, "run", trial_epochs=None)
    trained_on = [name for name in NAMES if len(shares[name]) > 1]
    assert len(trained_on) == 2 and all(shares[name] == [3 / 8, 1, 1] for name in trained_on)
    assert [shares[name] for name in NAMES if name not in trained_on] == [[3 / 8]]


def test_an_interrupted_choice_continues_with_the_same_figures(tiny, monkeypatch):
    run(tiny, "whole")
    trained, save = [], candidate_training.save_model

    def interrupted(path, *args, **kwargs):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(path)
        save(path, *args, **kwargs)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(candidate_training, "save_model", interrupted)
        run(tiny, "broken")
    run(tiny, "broken")
    log = Path("broken/log.txt").read_text()
    assert [log.count(f"{name}: epochs 1 to 1") for name in NAMES] == [1, 1, 2]  # the third was interrupted
    assert figures("broken") == figures("whole")


def test_candidates_side_by_side_give_the_figures_of_one_after_the_other(tiny, monkeypatch):
    pools, worker_pool = [], distributed.worker_pool
    monkeypatch.setattr(distributed, "worker_pool", lambda number: pools.append(number) or worker_pool(number))
    run(tiny, "alone")
    assert not pools
    run(tiny, "together", teachers_at_a_time=2)  # with one thread, as alone
    assert pools == [2], "both rounds have the same processes"
    assert not multiprocessing.active_children()
    assert figures("together") == figures("alone")
    assert Path("together/log.txt").read_text().count(": epochs 1 to 1") == len(NAMES)


@pytest.mark.parametrize(
    ("script", "guarded"),
    [
        ("run()\n", False),
        ("import sys\nif sys.argv:\n    run()\n", False),
        ('if __name__ == "__main__":\n    run()\n', True),
        (None, False),  # python - < script
    ],
)
def test_a_script_that_new_processes_would_run_again_is_given_none(tiny, monkeypatch, script, guarded):
    main = types.ModuleType("__main__")
    main.__file__ = "mine.py"
    if script is not None:
        Path("mine.py").write_text(script)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert distributed.main_is_guarded() == guarded
    if not guarded:
        run(tiny, "run", threads=2)
        assert "candidates are trained one after the other" in Path("run/log.txt").read_text()
        with pytest.raises(AdaRecError, match="mine.py: several processes need what it runs to be under if __name__"):
            run(tiny, "refused", teachers_at_a_time=2)


def test_an_error_of_a_candidate_beside_another_is_that_error(tiny):
    with pytest.raises(ValueError, match="nan"):
        run(tiny, "run", teachers_at_a_time=2, teacher_learning_rate=1e30)
    assert not multiprocessing.active_children()


KILLED = """
import os, signal
from recbole_adarec.model.teachers.base import teacher
from recbole_adarec.model.teachers.lrurec import LRURecTeacher

@teacher("Killed")
class Killed(LRURecTeacher):
    def __init__(self, config, dataset):
        if config["checkpoint_dir"] != "saved":  # only where it is trained
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(config, dataset)
"""


def test_a_killed_process_is_one_line(tiny):
    Path("killed.py").write_text(KILLED)
    with pytest.raises(AdaRecError, match="a process that trained it or another candidate was killed"):
        run(tiny, "run", teachers_at_a_time=2, backbone=["LRURec", "Killed"], plugins="killed.py")


def test_auto_is_a_list_in_which_the_users_keys_win():
    whole = teacher_candidates({"backbone": "auto"})
    assert len(whole) > 2 and any("dropout_prob" in row and "n_layers" in row for row in whole)
    reduced = teacher_candidates({"backbone": "auto", "teacher_dropout_prob": 0.1, "n_layers": 3})
    assert not any("dropout_prob" in row or "n_layers" in row for row in reduced)
    assert len(reduced) == len(whole), "equal ones are trained with different seeds"
    assert teacher_candidates({"backbone": "SASRec"}) == []


def test_a_candidate_has_its_own_values(tiny):
    backbone = [{"backbone": "CausalBSARec", "n_layers": 3}, {"backbone": "CausalBSARec", "n_layers": 1}]
    report = run(tiny, "run", backbone=backbone, most_members=1, distilled_layers=None)
    assert [row["name"] for row in report["teacher_candidates"]] == ["CausalBSARec-1", "CausalBSARec-2"]
    member = load_state("run/teacher.pth", expected="AdaRecTeacher")["config"]["members"][0]["config"]
    assert member["n_layers"] in (1, 3) and member["hidden_size"] == SMALL["hidden_size"]


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("[SASRec, GRU]", "unknown backbone 'GRU'.*known are auto, BERT4Rec"),
        ("[SASRec, {n_layers: 2}]", "candidate 2 of backbone is .* give each its own backbone"),
        ("[{backbone: SASRec, n_layer: 2}]", "unknown key 'n_layer' in candidate 1 of backbone; the nearest"),
        (
            "[{backbone: SASRec, n_layers: two}]",
            "n_layers in candidate 1 of backbone is 'two', expected a whole number",
        ),
        ("[{teacher: GRU4Re}]", "candidate 1 of backbone: RecBole has no model 'GRU4Re'"),
        ("[{teacher: GRU4Rec, n_layers: 2}]", "a model of RecBole takes distilled_layers and taught_positions here"),
        ("[]", "backbone in the command line is empty"),
    ],
)
def test_a_wrong_candidate_is_refused(backbone, expected):
    assert re.search(expected, refused(f"--backbone={backbone}"))


def test_a_candidate_that_cannot_be_built_is_refused_before_anything_is_written(tiny):
    with pytest.raises(AdaRecError, match="distilled_layers: 5 of 2 layers"):
        run(tiny, "run", backbone=["SASRec", "LRURec"], distilled_layers=5)
    assert not Path("run").exists()


def test_a_budget_is_refused_before_the_choice_only_if_no_mean_admits_a_student(tiny):
    small, large = ({"backbone": "LRURec", "n_layers": layers, "distilled_layers": 1} for layers in (1, 8))

    def checked(*backbone):
        values = {**FEW, "backbone": list(backbone), "cost_budget": 0.02, "data_path": str(tiny), "run_dir": "run"}
        return Run(RunConfig(resolve_user_config("tiny", [], values)))

    assert checked(small, large)
    with pytest.raises(
        AdaRecError, match="cost_budget: 0.02 of the teacher's layers .params.: no student costs so little"
    ):
        checked(small, small)


def test_the_student_learns_from_the_layers_of_all_members(tiny):
    report = run(tiny, "run", backbone=["CausalBSARec", "SASRec"], most_members=2)
    content = load_state("run/teacher.pth", expected="AdaRecTeacher")
    flow = torch.tensor(report["distillation"]["flow"])
    assert flow.shape[1] == 2 * len(content["config"]["members"])


def test_a_stored_configuration_gives_the_same_candidates(tiny):
    run(tiny, "run", backbone="auto")
    stored = load_yaml(Path("run/config.yaml"))
    assert [row["backbone"] for row in stored["backbone"]].count("LRURec") == 1
    report = run_adarec(config_file_list=["run/config.yaml"], run_dir="again", config_dict={"data_path": str(tiny)})
    assert figures("again") == figures("run") and report["dataset"] == "tiny"


def test_models_of_recbole_can_be_members(tiny, stock):
    """A mean of one of ours, one that RecBole trained before, and one that it trains here."""
    backbone = ["LRURec", {"teacher": str(stock["SASRec"])}, {"teacher": "GRU4Rec", "distilled_layers": 1}]
    values = {"backbone": backbone, "n_layers": 1, "distilled_layers": None, "most_members": 3}
    report = run(tiny, "run", user_inter_num_interval="[9,inf)", **values)
    names = [row["name"] for row in report["teacher_candidates"]]
    assert names == ["LRURec", stock["SASRec"].stem, "GRU4Rec"]
    content = load_state("run/teacher.pth", expected="AdaRecTeacher")
    assert content["config"]["MAX_ITEM_LIST_LENGTH"] == 12, "that of the checkpoint"
    again = run(tiny, "run", user_inter_num_interval="[9,inf)", **values)
    assert again["models"][0]["test"] == report["models"][0]["test"]


@torch.no_grad()
def test_a_mean_with_a_model_of_recbole_has_the_sum_of_their_logits(tiny):
    values = {**FEW, "backbone": ["LRURec", {"teacher": "GRU4Rec"}], "data_path": str(tiny), "run_dir": "run"}
    pipeline = Run(RunConfig(resolve_user_config("tiny", [], values)))
    candidates = pipeline.config.candidates
    members = [pipeline.config.candidate(row).final_config_dict for row in candidates]
    config = pipeline.config.candidate(candidates[0])
    config["members"] = [
        {"config": plain(member), "weight": weight} for member, weight in zip(members, (0.3, 0.6), strict=True)
    ]
    mean = get_model("AdaRecTeacher")(config, pipeline.data.train._dataset).eval()
    mean.members[1].repeat_bias.fill_(-1.5)
    mean.weigh()
    rows = pipeline.data.test._dataset[torch.arange(20)]
    ours, theirs = (member.full_sort_predict(rows) + unserved_prior(member) for member in mean.members)
    actual = mean.full_sort_predict(rows) + unserved_prior(mean)
    torch.testing.assert_close(actual[:, 1:], (0.3 * ours + 0.6 * theirs)[:, 1:], rtol=1e-4, atol=1e-4)
    histories = mean.scores(rows["item_id_list"], rows["item_length"])  # as `recommend` scores
    torch.testing.assert_close(histories, mean.full_sort_predict(rows), rtol=1e-4, atol=1e-4)
