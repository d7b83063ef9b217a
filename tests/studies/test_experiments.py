"""Experiments: scores of each user, paired comparisons, and that no run is trained twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from recbole.utils import get_model, get_trainer

import recbole_adarec.distillation.teacher_outputs as cache
from recbole_adarec.cli import main
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.distillation.teacher_outputs import CachedTeacher
from recbole_adarec.evaluation.per_user import user_scores
from recbole_adarec.evaluation.significance import paired_difference
from recbole_adarec.model.search_space.architecture import Architecture
from recbole_adarec.model.search_space.cost import architecture_cost
from recbole_adarec.storage.model_files import load_state
from recbole_adarec.studies.arms import PAIRED_METRICS, ArmResult, ArmStudy
from recbole_adarec.studies.experiment_tables import experiment_table
from recbole_adarec.studies.experiments import random_architectures, search_vs_random
from tests.helpers import SMALL, as_arguments, make_config


def test_user_scores_agree_with_recboles_metric_and_with_the_softmax(ml100k):
    config = make_config("student", gamma=0.0)
    model = get_model(config["model"])(config, ml100k.train._dataset).eval()
    expected = get_trainer(config["MODEL_TYPE"], config["model"])(config, model).evaluate(
        ml100k.test, load_best_model=False
    )
    scores = user_scores(model, ml100k.test)
    assert len(scores.user) == ml100k.dataset.user_num - 1 == len(scores.user.unique())
    assert float(scores.ndcg.mean()) == pytest.approx(expected["ndcg@10"], abs=1e-4)  # RecBole rounds to four digits
    interaction, _, _, item = next(iter(ml100k.test))
    log_p = model.full_sort_predict(interaction)[:, 1:].log_softmax(-1)
    users = interaction[ml100k.dataset.uid_field]
    expected_log_p = {int(user): float(log_p[row, item[row] - 1]) for row, user in enumerate(users)}
    for user, value in zip(scores.user.tolist(), scores.log_likelihood.tolist(), strict=True):
        assert user not in expected_log_p or value == pytest.approx(expected_log_p[user], abs=1e-4)


def test_a_95_percent_interval_covers_the_mean_in_95_percent_of_the_trials():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for trial in range(200):
        noise = torch.randn(150, generator=generator)
        better = noise + 0.3 * torch.randn(150, generator=generator) + 0.1
        difference = paired_difference(better, noise, resamples=400, seed=trial)
        assert difference.low < difference.mean < difference.high
        covered += difference.low <= 0.1 <= difference.high
    assert 0.89 < covered / 200 < 0.99


def test_equal_seeds_do_not_narrow_the_interval():
    values = torch.randn(80, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(3, 80)
    assert paired_difference(values.expand(3, -1), zero) == pytest.approx(paired_difference(values, zero[0]))


@pytest.mark.parametrize("share", [True, False])
def test_random_architectures_differ_and_cost_no_more_than_the_limit(share):
    config = make_config("search", share_cells=share, candidate_sizes=[16, 8])
    like = Architecture(16, (("conv_3",) * 6,) * 4)
    limit = architecture_cost(like, "params") // 2
    drawn = random_architectures(like, config, limit, 30)
    assert len(set(drawn)) == 30 and all(architecture_cost(each, "params") <= limit for each in drawn)
    assert all(len(set(each.cells)) == 1 for each in drawn) == share
    assert drawn == random_architectures(like, config, limit, 30)


def test_better_random_architectures_are_listed_by_layer_parameters_and_by_all_parameters(tmp_path):
    """Those that are worse, or better within the interval, are in neither list."""
    kinds = {  # gain over the searched one, parameters in all, parameters of the layers
        "searched": (0.0, 300, 100), "wide": (0.5, 400, 80), "small": (0.5, 200, 80), "deep": (0.5, 200, 120),
        "worse": (-0.5, 200, 80), "lucky": (0.01, 200, 80),
    }  # fmt: skip
    noise = torch.randn(len(kinds), 1, 300, generator=torch.Generator().manual_seed(0))
    noise -= noise.mean(2, keepdim=True)

    class KnownResults(ArmStudy):
        def run(self, arms):
            kind = dict(zip(kinds if arms[0].name == "search" else list(kinds)[1:], arms, strict=False))
            return {arm.name: self.result(name) for name, arm in kind.items()}

        def result(self, name):
            gain, total, layers = kinds[name]
            scores = dict.fromkeys(PAIRED_METRICS, gain + noise[list(kinds).index(name)])
            searched = Architecture(32, (("conv_3",) * 6,) * 4)
            return ArmResult({"valid": scores, "test": scores}, {"test": scores}, [total], [layers], [900], [searched])

    result = search_vs_random(KnownResults(resolve_user_config("ml-100k", [], {}), [1], tmp_path), len(kinds) - 1)
    names = dict(zip(list(result["arms"])[1:], list(kinds)[1:], strict=True))
    for metric in PAIRED_METRICS:
        for key, expected in (("cheaper_and_better", ["wide", "small"]), ("smaller_and_better", ["small", "deep"])):
            assert [names[name] for name in result[metric][key]] == expected


SHORT = ["--seeds=[1]", *as_arguments(SMALL | {"block_num": 2})]


def test_an_experiment_writes_its_tables_and_the_same_command_trains_nothing_again(tiny, tmp_path, capsys, monkeypatch):
    arguments = [
        "experiment", "search-vs-random", "--dataset=tiny", f"--data_path={tiny}", "--seeds=[1, 2]", "--random=2",
        f"--output={tmp_path / 'out'}", "--hidden_size=16", "--search_hidden_size=8", "--block_num=2", "--epochs=2",
        "--cost_budget=0.5", "--candidate_sizes=~",
        "--distilled_layers=2", "--train_batch_size=200", "--show_progress=False",
    ]  # fmt: skip
    caches = []
    monkeypatch.setattr(cache, "CachedTeacher", lambda *args, **kw: caches.append(args) or CachedTeacher(*args, **kw))
    assert main(arguments) == 0
    assert len(caches) == 2 * 2, "for each seed one for the search and one for all random architectures"
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out/tiny/search-vs-random.json").read_text())
    assert len(result["arms"]) == 3 and "derived" in result["arms"] and result["seeds"] == [1, 2]
    assert 0 <= result["log_likelihood"]["percentile"] <= 100
    for arm in result["arms"].values():  # the rest is the item table: 20 items and the padding, of 8 channels
        assert [total - layers for total, layers in zip(arm["total"], arm["layers"], strict=True)] == [21 * 8] * 2
    assert printed.strip() == (tmp_path / "out/tiny/search-vs-random.md").read_text().strip()
    made = {path: path.stat().st_mtime_ns for path in Path(tmp_path / "out").rglob("*.pth")}
    assert main(arguments) == 0 and capsys.readouterr().out == printed
    assert made == {path: path.stat().st_mtime_ns for path in Path(tmp_path / "out").rglob("*.pth")}
    assert main([*arguments, "--gamma=0.5"]) == 2, "runs of other values are not reused"
    assert "gamma is None there and 0.5 now" in capsys.readouterr().err

    # The student of an arm has the weights that a run of its architecture alone gives.
    values = [each for each in arguments[2:] if not each.startswith(("--seeds", "--random", "--output"))]
    for run in (tmp_path / "out/tiny/runs/seed-1").iterdir():
        alone = tmp_path / f"alone-{run.name}"
        assert main([*values, "--seed=1", f"--architecture={run}/architecture.yaml", f"--run_dir={alone}"]) == 0
        files = (alone / "student.pth", run / "student.pth")
        actual, expected = (load_state(file, expected="AdaRecStudent")["state_dict"] for file in files)
        assert all(torch.equal(actual[name], weights) for name, weights in expected.items())


PARENT = """
import os, time
from recbole_adarec.distributed import worker_pool

if __name__ == "__main__":
    with worker_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 60)
"""


def test_workers_end_with_their_parent_process(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        worker.wait(timeout=30)


@pytest.mark.parametrize(("name", "arm"), [("search-vs-random", "derived"), ("teachers", "student of NextItNet")])
def test_a_student_that_started_with_the_supernets_weights_is_retrained_for_the_comparison(tiny, tmp_path, name, arm):
    arguments = ["--dataset=tiny", f"--data_path={tiny}", "--random=1", f"--output={tmp_path}", *SHORT]
    assert main(["experiment", name, *arguments, "--init_from_supernet=True"]) == 0
    seed = tmp_path / "tiny/runs/seed-1"
    assert (seed / arm / "student.pth").is_file() and not (seed / arm / "search.pth").exists()
    assert (seed / arm / "teacher.pth").read_bytes() == (seed / "search/teacher.pth").read_bytes()


@pytest.mark.parametrize("name", ["ablation", "teachers"])
def test_every_arm_is_compared_with_the_reference(tiny, tmp_path, capsys, name):
    arguments = ["experiment", name, "--dataset=tiny", f"--data_path={tiny}", f"--output={tmp_path}", *SHORT]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "tiny" / f"{name}.json").read_text())
    page = (tmp_path / "tiny" / f"{name}.html").read_text()
    assert page.count("Plotly.newPlot") == 2 and "http://" not in printed
    for arm, row in result["arms"].items():
        assert f"| {arm} " in printed and arm in page
        assert (arm == result["reference"]) != ("against_reference" in row)
        if arm != result["reference"]:
            mean, reference = (
                result["arms"][each]["test"]["log_likelihood"]["mean"] for each in (arm, result["reference"])
            )
            assert row["against_reference"]["log_likelihood"]["mean"] == pytest.approx(mean - reference, abs=1e-6)
    if name == "ablation":
        assert main([*arguments, "--arms=[single level]"]) == 0
        assert list(json.loads((tmp_path / "tiny/ablation.json").read_text())["arms"]) == ["whole", "single level"]
        assert main([*arguments, "--arms=[two levels]"]) == 2 and "known are no distillation" in capsys.readouterr().err
    else:
        assert main([*arguments, "--arms=[SASRec]"]) == 2 and "arms: experiment teachers" in capsys.readouterr().err


def test_transfer_trains_the_architecture_of_each_dataset_on_each_dataset(tiny, tmp_path):
    lines = (tiny / "tiny/tiny.inter").read_text()
    for name in ("one", "two"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / f"{name}.inter").write_text(lines)
    arguments = ["--datasets=[one, two]", f"--data_path={tmp_path / 'data'}", f"--output={tmp_path}", *SHORT]
    assert main(["experiment", "transfer", *arguments]) == 0
    result = json.loads((tmp_path / "transfer.json").read_text())
    assert {dataset: set(comparison["arms"]) for dataset, comparison in result["datasets"].items()} == {
        "one": {"from one", "from two"}, "two": {"from one", "from two"},
    }  # fmt: skip
    one, two = (result["datasets"][dataset]["arms"]["from two"]["architectures"] for dataset in ("one", "two"))
    assert one == two
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pth")}
    assert main(["experiment", "transfer", "--scenes=[one, two]", *arguments[1:]]) == 0, "the key of version 0.1"
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pth")}
    table = (tmp_path / "transfer.md").read_text()
    assert "## one" in table and table.count("| from two ") == 2
    result["scenes"] = result.pop("datasets")
    assert experiment_table(result) == table, "a JSON file of version 0.1"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["experiment"], "search-vs-random"),
        (["experiment", "ablations"], "'ablations'"),
        (["experiment", "transfer"], "--datasets="),
        (["experiment", "transfer", "--datasets=[ml-100k]"], "two datasets or more"),
        (["experiment", "transfer", "--datasets=[a, b]", "--scenes=[a, b]"], "give datasets alone"),
        (["experiment", "teachers", "--datasets=[a, b]"], "experiment teachers runs on one dataset"),
        (["experiment", "ablation", "--seeds=2020"], "seeds is 2020"),
        (["experiment", "ablation", "--run_dir=x"], "run_dir"),
        (["experiment", "ablation", "--workerz=2"], "workerz"),
    ],
)
def test_wrong_input_is_refused_in_one_line(arguments, word, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1
