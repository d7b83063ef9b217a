"""Experiments: what is measured for each user, how it is compared, and that nothing is run twice."""

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
from recbole_adarec.studies.experiments import random_architectures, search_vs_random
from tests.conftest import make_config


def test_scores_of_users_are_recboles_metric_and_the_softmax(ml100k):
    config = make_config("student", gamma=0.0)
    model = get_model(config["model"])(config, ml100k.train._dataset).eval()
    expected = get_trainer(config["MODEL_TYPE"], config["model"])(config, model).evaluate(
        ml100k.test, load_best_model=False
    )
    found = user_scores(model, ml100k.test)
    assert len(found.user) == ml100k.dataset.user_num - 1 == len(found.user.unique())
    assert float(found.ndcg.mean()) == pytest.approx(expected["ndcg@10"], abs=1e-4)  # RecBole rounds to four digits
    interaction, _, _, item = next(iter(ml100k.test))
    log_p = model.full_sort_predict(interaction)[:, 1:].log_softmax(-1)
    users = interaction[ml100k.dataset.uid_field]
    of_row = {int(user): float(log_p[row, item[row] - 1]) for row, user in enumerate(users)}
    for user, value in zip(found.user.tolist(), found.log_likelihood.tolist(), strict=True):
        assert user not in of_row or value == pytest.approx(of_row[user], abs=1e-4)


def test_a_paired_interval_covers_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for trial in range(200):
        noise = torch.randn(150, generator=generator)
        ours = noise + 0.3 * torch.randn(150, generator=generator) + 0.1
        found = paired_difference(ours, noise, resamples=400, seed=trial)
        assert found.low < found.mean < found.high
        covered += found.low <= 0.1 <= found.high
    assert 0.89 < covered / 200 < 0.99


def test_seeds_of_a_user_count_as_one_user():
    """Three equal seeds say no more than one does."""
    values = torch.randn(80, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(3, 80)
    assert paired_difference(values.expand(3, -1), zero) == pytest.approx(paired_difference(values, zero[0]))


@pytest.mark.parametrize("share", [True, False])
def test_random_architectures_are_different_ones_within_the_limit(share):
    config = make_config("search", share_cells=share, candidate_sizes=[16, 8])
    like = Architecture(16, (("conv_3",) * 6,) * 4)
    limit = architecture_cost(like, "params") // 2
    drawn = random_architectures(like, config, limit, 30)
    assert len(set(drawn)) == 30 and all(architecture_cost(each, "params") <= limit for each in drawn)
    assert all(len(set(each.cells)) == 1 for each in drawn) == share
    assert drawn == random_architectures(like, config, limit, 30)


def test_better_random_architectures_are_held_against_the_searched_one_by_layers_and_by_all_parameters(tmp_path):
    """What is wider is dearer in all, whatever its layers cost; what is worse, or better by chance, is no matter."""
    kinds = {  # gain over the searched one, parameters in all, parameters of the layers
        "searched": (0.0, 300, 100), "wide": (0.5, 400, 80), "small": (0.5, 200, 80), "deep": (0.5, 200, 120),
        "worse": (-0.5, 200, 80), "lucky": (0.01, 200, 80),
    }  # fmt: skip
    noise = torch.randn(len(kinds), 1, 300, generator=torch.Generator().manual_seed(0))
    noise -= noise.mean(2, keepdim=True)

    class Given(ArmStudy):
        def run(self, arms):
            kind = dict(zip(kinds if arms[0].name == "search" else list(kinds)[1:], arms, strict=False))
            return {arm.name: self.result(name) for name, arm in kind.items()}

        def result(self, name):
            gain, total, layers = kinds[name]
            of = dict.fromkeys(PAIRED_METRICS, gain + noise[list(kinds).index(name)])
            searched = Architecture(32, (("conv_3",) * 6,) * 4)
            return ArmResult({"valid": of, "test": of}, {"test": of}, [total], [layers], [900], [searched])

    found = search_vs_random(Given(resolve_user_config("ml-100k", [], {}), [1], tmp_path), len(kinds) - 1)
    names = dict(zip(list(found["arms"])[1:], list(kinds)[1:], strict=True))
    for metric in PAIRED_METRICS:
        for key, expected in (("cheaper_and_better", ["wide", "small"]), ("smaller_and_better", ["small", "deep"])):
            assert [names[name] for name in found[metric][key]] == expected


SMALL = [
    "--seeds=[1]", "--hidden_size=16", "--search_hidden_size=8", "--block_num=2", "--epochs=1", "--n_layers=2",
    "--cost_budget=0.5", "--candidate_sizes=~",
    "--inner_size=16", "--distilled_layers=2", "--train_batch_size=200", "--show_progress=False",
]  # fmt: skip


def test_an_experiment_writes_its_tables_and_the_same_command_runs_nothing_again(tiny, tmp_path, capsys, monkeypatch):
    arguments = [
        "experiment", "search-vs-random", "--dataset=tiny", f"--data_path={tiny}", "--seeds=[1, 2]", "--random=2",
        f"--output={tmp_path / 'out'}", "--hidden_size=16", "--search_hidden_size=8", "--block_num=2", "--epochs=2",
        "--cost_budget=0.5", "--candidate_sizes=~",
        "--distilled_layers=2", "--train_batch_size=200", "--show_progress=False",
    ]  # fmt: skip
    asked = []
    monkeypatch.setattr(cache, "CachedTeacher", lambda *args, **kw: asked.append(args) or CachedTeacher(*args, **kw))
    assert main(arguments) == 0
    assert len(asked) == 2 * 2, "once for a seed's search, once for all random ones"
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out/tiny/search-vs-random.json").read_text())
    assert len(found["arms"]) == 3 and "derived" in found["arms"] and found["seeds"] == [1, 2]
    assert 0 <= found["log_likelihood"]["percentile"] <= 100
    for arm in found["arms"].values():  # the rest is the item table: 20 items and the padding, of 8 channels
        assert [total - layers for total, layers in zip(arm["total"], arm["layers"], strict=True)] == [21 * 8] * 2
    assert printed.strip() == (tmp_path / "out/tiny/search-vs-random.md").read_text().strip()
    made = {path: path.stat().st_mtime_ns for path in Path(tmp_path / "out").rglob("*.pth")}
    assert main(arguments) == 0 and capsys.readouterr().out == printed
    assert made == {path: path.stat().st_mtime_ns for path in Path(tmp_path / "out").rglob("*.pth")}
    assert main([*arguments, "--gamma=0.5"]) == 2, "what other values gave is not taken for a result"
    assert "gamma is None there and 0.5 now" in capsys.readouterr().err

    # The student of the search stands for its architecture, as every arm does: by itself that gives the same weights.
    values = [each for each in arguments[2:] if not each.startswith(("--seeds", "--random", "--output"))]
    for run in (tmp_path / "out/tiny/runs/seed-1").iterdir():
        alone = tmp_path / f"alone-{run.name}"
        assert main([*values, "--seed=1", f"--architecture={run}/architecture.yaml", f"--run_dir={alone}"]) == 0
        files = (alone / "student.pth", run / "student.pth")
        found, expected = (load_state(file, expected="AdaRecStudent")["state_dict"] for file in files)
        assert all(torch.equal(found[name], weights) for name, weights in expected.items())


PARENT = """
import os, time
from recbole_adarec.studies.arms import worker_pool

if __name__ == "__main__":
    with worker_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 60)
"""


def test_workers_end_with_the_process_that_gives_them_work(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        worker.wait(timeout=30)


@pytest.mark.parametrize(("name", "arm"), [("search-vs-random", "derived"), ("teachers", "student of NextItNet")])
def test_a_student_that_began_with_the_supernets_weights_is_trained_again_beside_others(tiny, tmp_path, name, arm):
    arguments = ["--dataset=tiny", f"--data_path={tiny}", "--random=1", f"--output={tmp_path}", *SMALL]
    assert main(["experiment", name, *arguments, "--init_from_supernet=True"]) == 0
    seed = tmp_path / "tiny/runs/seed-1"
    assert (seed / arm / "student.pth").is_file() and not (seed / arm / "search.pth").exists()
    assert (seed / arm / "teacher.pth").read_bytes() == (seed / "search/teacher.pth").read_bytes()


@pytest.mark.parametrize("name", ["ablation", "teachers"])
def test_every_arm_is_compared_with_the_reference(tiny, tmp_path, capsys, name):
    arguments = ["experiment", name, "--dataset=tiny", f"--data_path={tiny}", f"--output={tmp_path}", *SMALL]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "tiny" / f"{name}.json").read_text())
    page = (tmp_path / "tiny" / f"{name}.html").read_text()
    assert page.count("Plotly.newPlot") == 2 and "http://" not in printed
    for arm, row in found["arms"].items():
        assert f"| {arm} " in printed and arm in page
        assert (arm == found["reference"]) != ("against_reference" in row)
        if arm != found["reference"]:
            ours, theirs = (found["arms"][of]["test"]["log_likelihood"]["mean"] for of in (arm, found["reference"]))
            assert row["against_reference"]["log_likelihood"]["mean"] == pytest.approx(ours - theirs, abs=1e-6)
    if name == "ablation":
        assert main([*arguments, "--arms=[single level]"]) == 0
        assert list(json.loads((tmp_path / "tiny/ablation.json").read_text())["arms"]) == ["whole", "single level"]
        assert main([*arguments, "--arms=[two levels]"]) == 2 and "known are no distillation" in capsys.readouterr().err
    else:
        assert main([*arguments, "--arms=[SASRec]"]) == 2 and "arms: experiment teachers" in capsys.readouterr().err


def test_transfer_trains_each_scene_with_the_architecture_of_each(tiny, tmp_path):
    lines = (tiny / "tiny/tiny.inter").read_text()
    for name in ("one", "two"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / f"{name}.inter").write_text(lines)
    arguments = ["--scenes=[one, two]", f"--data_path={tmp_path / 'data'}", f"--output={tmp_path}", *SMALL]
    assert main(["experiment", "transfer", *arguments]) == 0
    found = json.loads((tmp_path / "transfer.json").read_text())["scenes"]
    assert {scene: set(part["arms"]) for scene, part in found.items()} == {
        "one": {"from one", "from two"}, "two": {"from one", "from two"},
    }  # fmt: skip
    here, there = found["one"]["arms"]["from two"], found["two"]["arms"]["from two"]
    assert here["architectures"] == there["architectures"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["experiment"], "search-vs-random"),
        (["experiment", "ablations"], "'ablations'"),
        (["experiment", "transfer"], "--scenes"),
        (["experiment", "ablation", "--seeds=2020"], "seeds is 2020"),
        (["experiment", "ablation", "--run_dir=x"], "run_dir"),
        (["experiment", "ablation", "--workerz=2"], "workerz"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(arguments, word, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1
