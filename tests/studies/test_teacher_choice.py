"""The experiment that compares the chosen teacher with its candidates and with models of RecBole."""

from __future__ import annotations

import json

import pytest

from recbole_adarec.cli import main
from recbole_adarec.storage.files import load_checkpoint
from tests.helpers import SMALL, as_arguments, refused

FEW = as_arguments(
    SMALL
    | {"backbone": ["CausalBSARec", "LRURec", "NextItNet"], "teacher_epochs": 3, "trial_epochs": 1, "most_members": 2}
    | {"teacher_learning_rate": 0.01, "distilled_layers": None, "baseline_epochs": 2, "threads": 1}
)


@pytest.fixture(scope="module")
def result(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    arguments = [
        "experiment", "teacher-choice", "--dataset=tiny", f"--data_path={tiny}", f"--output={folder}", *FEW,
        "--baselines=[SASRec, LightSANs]", "--fast_baselines", "--seeds=[1, 2]",
    ]  # fmt: skip
    assert main(arguments) == 0
    return folder / "tiny", json.loads((folder / "tiny/teacher-choice.json").read_text()), arguments


def test_the_table_has_the_choice_its_parts_and_models_of_recbole(result):
    folder, content, _ = result
    rows = content["arms"]
    assert list(rows) == [
        "auto", "CausalBSARec", "LRURec", "NextItNet", "no temperatures", "no second seeds", "mean of all",
        "without CausalBSARec", "without LRURec", "without NextItNet", "popularity", "SASRec", "LightSANs",
    ]  # fmt: skip
    assert all(1 <= len(members) <= 2 for members in content["members"])
    assert (
        rows["auto"]["recall"]["mean"]
        >= rows["auto"]["test"]["ndcg"]["mean"]
        > rows["popularity"]["test"]["ndcg"]["mean"]
    )
    assert all("against_reference" in row for name, row in rows.items() if name != "auto")
    table = (folder / "teacher-choice.md").read_text()
    assert "Members of seed 2" in table and "Recall@10" in table


def test_the_chosen_teacher_is_that_of_a_run(result, tiny, tmp_path):
    folder, _, _ = result
    arguments = ["--dataset=tiny", f"--data_path={tiny}", f"--run_dir={tmp_path}/run", "--seed=1", *FEW]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "run/report.json").read_text())
    rows = load_checkpoint(folder / "teachers/seed-1/auto/users.pth")["rows"]
    ndcg = float(rows["auto"]["test"]["ndcg"].mean())
    assert round(ndcg, 4) == round(report["models"][0]["test"]["ndcg@10"], 4)


def test_the_same_command_trains_nothing_again(result, capsys):
    folder, _, arguments = result
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth")}
    assert main(arguments) == 0
    assert files == {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth")}
    capsys.readouterr()


def test_what_the_experiment_cannot_use_is_refused():
    assert "give several candidates" in refused("experiment", "teacher-choice", "--backbone=SASRec")
    assert "trains no models of RecBole" in refused("experiment", "ablation", "--fast_baselines")
