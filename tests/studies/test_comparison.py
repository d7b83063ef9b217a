"""Comparison of models: the same users, RecBole's metrics, paired tests, no model trained twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from recbole.utils import get_model
from scipy import stats

from recbole_adarec.cli import main
from recbole_adarec.config.baselines import baseline_config
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.data.loading import load_data
from recbole_adarec.evaluation.significance import paired_tests
from recbole_adarec.interop.every_position import EVERY_POSITION_MODELS, EveryPosition
from tests.helpers import OLD_DEFAULTS, SMALL, as_arguments, make_config


def compare(tiny: Path, models: str, *more: str) -> int:
    return main(["compare", "--dataset=tiny", f"--data_path={tiny}", f"--models={models}", *as_arguments(SMALL), *more])


@pytest.fixture
def comparison(tiny):
    assert compare(tiny, "SASRec FPMC AdaRecStudent AdaRecTeacher") == 0
    return json.loads(Path("compare/tiny/compare.json").read_text())


def test_models_of_all_kinds_are_compared_and_none_is_trained_twice(comparison, tiny, capsys):
    folder = Path("compare/tiny")
    assert [model["name"] for model in comparison["models"]] == ["SASRec", "FPMC", "AdaRecStudent", "AdaRecTeacher"]
    assert comparison["reference"] == "AdaRecStudent" and comparison["users"] == 60
    for model in comparison["models"]:
        # RecBole's metrics are those of its trainer; the log-likelihood is not far below that of a random guess.
        assert 0 <= model["test"]["ndcg@10"] <= model["test"]["recall@10"] <= 1 and model["test"]["log_likelihood"] > -9
        assert model["parameters"]["item_table"] > 0 and model["training"]["seconds"] > 0
        assert model["latency_ms"]["batch_1_p50"] > 0 and model["macs_per_sequence"] >= 0
    student, teacher = comparison["models"][2:]
    assert student["training"]["seconds"] > teacher["training"]["seconds"], "including its teacher and its search"
    by_name = {model["name"]: model for model in comparison["models"]}
    for model in comparison["models"]:
        assert model["test"]["ndcg_new"] >= model["test"]["ndcg@10"] - 1e-4  # RecBole rounds
    for row in comparison["significance"]:
        if row["measure"] not in ("log_likelihood", "ndcg_new"):  # RecBole rounds to four digits
            value, reference = (
                by_name[name]["test"][f"{row['measure']}@10"] for name in (row["model"], "AdaRecStudent")
            )
            assert row["mean"] == pytest.approx(value - reference, abs=1.1e-4)
        assert row["low"] <= row["mean"] <= row["high"]
    assert {row["model"] for row in comparison["significance"]} == {"SASRec", "FPMC", "AdaRecTeacher"}
    for name, words in (("md", "as RecBole trains it: SASRec"), ("tex", "\\bfseries"), ("html", "Plotly.newPlot")):
        assert words in (folder / f"compare.{name}").read_text()
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth")}
    # More models are added, trained on every position; the files of the others stay.
    assert compare(tiny, "SASRec AdaRecStudent CpRec FPMC GRU4Rec", "--fast_baselines", "--reference=FPMC") == 0
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    again = json.loads((folder / "compare.json").read_text())
    how = [model["training"]["how"] for model in again["models"]]
    assert how == ["every position", "here", "here", "RecBole", "every position"]
    assert again["models"][3]["test"] == comparison["models"][1]["test"] and again["reference"] == "FPMC"
    assert "not as RecBole trains it (`--fast_baselines`): SASRec, GRU4Rec" in (folder / "compare.md").read_text()
    capsys.readouterr()
    assert compare(tiny, "SASRec", "--seed=1") == 2
    assert "seed is 2020 there and 1 now" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(EVERY_POSITION_MODELS))
def test_a_causal_model_depends_on_no_later_item_and_scores_as_recboles(name, ml100k):
    values = resolve_user_config("ml-100k", [], {**OLD_DEFAULTS, "baselines": [name], "show_progress": False})
    config = baseline_config(values, name, every_position=True)
    model = EveryPosition(config, ml100k.train._dataset).eval()
    rows = ml100k.test._dataset[torch.arange(40)]
    items, lengths = rows["item_id_list"], rows["item_length"]
    states = model.encode(items).output
    changed = items.clone()
    changed[:, 6:] = changed[:, 6:].flip(0)
    assert torch.equal(model.encode(changed).output[:, :6], states[:, :6])
    full = rows[lengths == items.shape[1]] if name == "NextItNet" else rows  # RecBole's reads the last position
    assert len(full["item_length"]) > 5
    expected = model.stock.full_sort_predict(full)
    assert torch.allclose(model.full_sort_predict(full), expected, atol=1e-4)
    assert "gather_indexes" not in vars(model.stock), "RecBole's class is unchanged"


def test_training_on_every_position_learns(tiny):
    """In nine of ten cases the last item determines the next one."""
    from recbole_adarec.interop.baselines import train_baseline
    from recbole_adarec.storage.files import load_checkpoint

    overrides = {**OLD_DEFAULTS, "baselines": ["GRU4Rec"], "data_path": str(tiny), "train_batch_size": 200}
    overrides["show_progress"] = False
    values = resolve_user_config("tiny", [], overrides | {"epochs": 40, "learning_rate": 0.02})
    config = baseline_config(values, "GRU4Rec", every_position=True)
    data = load_data(make_config("teacher", "tiny", data_path=str(tiny)))
    train_baseline(Path("fast.pth"), config, data)
    assert load_checkpoint("fast.pth")["test"]["ndcg@10"] > 0.6


def test_models_with_sampled_negatives_keep_recboles_sampling(tiny):
    values = resolve_user_config("tiny", [], {"baselines": ["FPMC", "SASRec"], "data_path": str(tiny)})
    assert baseline_config(values, "FPMC")["train_neg_sample_args"]["sample_num"] == 1
    assert baseline_config(values, "SASRec")["train_neg_sample_args"]["distribution"] == "none"
    assert get_model("FPMC").__module__.startswith("recbole.")


def test_p_values_are_those_of_scipy_and_none_without_differences():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(80, generator=generator), torch.rand(80, generator=generator) - 0.1
    tests = paired_tests(first, second)
    assert tests.t_test == pytest.approx(stats.ttest_rel(first.double(), second.double()).pvalue)
    assert tests.wilcoxon == pytest.approx(stats.wilcoxon(first.double(), second.double()).pvalue)
    assert paired_tests(first, first) == (None, None)
    assert paired_tests(first, -second).t_test == pytest.approx(paired_tests(-second, first).t_test)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "name the models"),
        (["--models=SASRec NoSuchModel"], "'NoSuchModel'"),
        (["--models=SASRec", "--reference=GRU4Rec"], "reference is 'GRU4Rec'"),
        (["--models=SASRec", "--nproc=2"], "leave out nproc"),
        (["--models=SASRec", "--fast_baselines=3"], "fast_baselines is 3"),
        (["--models=SASRec", "--num_layer=2"], "num_layer"),
        (["--models=GRU4Rec", "--baseline_loss_type=BPR", "--fast_baselines"], "every position takes 'CE'"),
    ],
)
def test_wrong_input_is_refused_in_one_line(arguments, word, capsys):
    assert main(["compare", "--show_progress=False", *arguments]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1
    assert not list(Path().rglob("*.pth"))
