"""Bad input gets one line on stderr and exit code 2; nothing is evaluated, nothing is overwritten."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from urllib.error import URLError

import pytest
from recbole.utils import url

from recbole_adarec.cli import main, parse_arguments
from recbole_adarec.config import resolve, stage_config
from recbole_adarec.errors import AdaRecError
from recbole_adarec.settings import PROPERTIES, load_yaml
from tests.conftest import write_dataset


def refused(*arguments: str) -> str:
    """The one line that a refused command prints."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(arguments))
    lines = err.getvalue().strip().splitlines()
    assert code == 2 and len(lines) == 1, err.getvalue()
    assert not Path("saved").exists() and not Path("run").exists()
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--teacher_epoch=3"], "unknown key 'teacher_epoch' in command line or config_dict; the nearest known key is"),
        (["--layer_maping=emd"], "nearest known key is 'layer_mapping'"),
        (["--epochs=many"], "epochs in command line or config_dict is 'many' (str), expected int"),
        (["--search_epochs=1.5"], "search_epochs in command line or config_dict is 1.5 (float), expected int"),
        (["--gamma=2"], "gamma in command line or config_dict is 2, expected between 0 and 1"),
        (["--share_cells=3"], "expected bool"),
        (["--operations=[conv_3, conv_7]"], "unknown operation 'conv_7'; known are conv_3"),
        (["--backbone=GPT"], "unknown value 'GPT'; known are NextItNet, SASRec, BERT4Rec"),
        (["--layer_mapping=best"], "unknown value 'best'; known are emd, left"),
        (["--dataset=ml-100kk"], "unknown dataset 'ml-100kk': looked for"),
        (["--config_files=nowhere.yaml"], "config_files: no file 'nowhere.yaml', looked in"),
        (["--architecture=nowhere.yaml"], "architecture: no file 'nowhere.yaml'"),
        (["--distilled_layers=99"], "99 of 16 layers"),
        (["epochs=3"], "not of the form --key=value"),
        (["--epochs=3", "--epochs=4"], "given twice"),
        (["--baselines=[NoSuchModel]"], "RecBole has no model 'NoSuchModel'"),
        (["--metrics=[Recal]"], "Recal"),
        (["--cost_budget=-1"], "cost_budget"),
    ],
)
def test_refused(arguments, words):
    assert words in refused(*arguments)


def test_unknown_dataset_says_where_it_looked_and_what_is_there(tmp_path):
    folder = write_dataset(tmp_path, "beauty", [[1, 2, 3, 4]])
    line = refused("--dataset=beuty", f"--data_path={folder}")
    assert str(folder) in line and "did you mean 'beauty'" in line


def test_dataset_without_a_time_field(tmp_path):
    folder = write_dataset(tmp_path, "untimed", [[1, 2, 3, 4]], header="user_id:token\titem_id:token\twhen:float")
    line = refused("--dataset=untimed", f"--data_path={folder}")
    assert "no column 'timestamp' (TIME_FIELD)" in line and "user_id, item_id, when" in line


@pytest.mark.parametrize("histories", [[[1, 2], [2, 3]], [[1, 2, 3], [3, 2, 1]]])
def test_histories_too_short_to_split(tmp_path, histories):
    folder = write_dataset(tmp_path, "short", histories)
    assert "a history needs at least 4 items" in refused("--dataset=short", f"--data_path={folder}")


def test_filters_that_leave_nothing(tmp_path):
    folder = write_dataset(tmp_path, "short", [[1, 2, 3, 4, 5]] * 3)
    line = refused("--dataset=short", f"--data_path={folder}", "--user_inter_num_interval=[100,inf)")
    assert "'short'" in line


def test_a_full_disk(monkeypatch, tmp_path):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=2**20))
    out = io.StringIO()
    with redirect_stderr(out):
        assert main([f"--run_dir={tmp_path / 'full'}"]) == 2
    assert "1 MB free" in out.getvalue() and list((tmp_path / "full").iterdir()) == []


def test_values_are_never_evaluated(tmp_path):
    trap = tmp_path / "executed"
    for text in (f"__import__('pathlib').Path('{trap}').touch()", f"!!python/object/apply:os.mkdir ['{trap}']"):
        _, values = parse_arguments([f"--dataset={text}"])
        with pytest.raises(AdaRecError):
            stage = stage_config(resolve(None, [], values), "teacher")
            from recbole_adarec.data.loading import load_data

            load_data(stage)
    assert not trap.exists()


def test_values_are_yaml():
    files, values = parse_arguments(
        ["--config_files=a.yaml b.yaml", "--learning_rate=1e-3", "--topk=[5, 10]", "--cost_budget=~", "--seed=7"]
    )
    assert files == ["a.yaml", "b.yaml"]
    assert values == {"learning_rate": 0.001, "topk": [5, 10], "cost_budget": None, "seed": 7}


def test_the_callers_arguments_are_not_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebook", "--epochs=77", "--not_a_key=1"])
    assert stage_config(resolve(None, [], {}), "teacher")["epochs"] != 77


def test_order_of_values(tmp_path):
    (tmp_path / "mine.yaml").write_text("learning_rate: 0.5\nteacher_epochs: 3\nseed: 1\n")
    values = resolve("ml-100k", ["adarec.yaml", "mine.yaml"], {"seed": 2})
    teacher, student = stage_config(values, "teacher"), stage_config(values, "student")
    assert teacher["learning_rate"] == student["learning_rate"] == 0.5
    assert teacher["epochs"] == 3 and student["epochs"] == load_yaml(PROPERTIES / "model/AdaRecStudent.yaml")["epochs"]
    assert teacher["seed"] == 2


def test_config_files_alone_change_nothing():
    assert resolve(None, ["adarec.yaml"], {}) == resolve(None, [], {})


@pytest.mark.parametrize("name", sorted(p.name for p in (PROPERTIES / "paper").glob("*.yaml")))
def test_paper_sizes_are_one_file_away(name):
    values = resolve(None, [f"paper/{name}"], {})
    assert stage_config(values, "teacher")["hidden_size"] in (128, 256)
    assert stage_config(values, "search")["hidden_size"] == 64


def test_a_failed_download_says_where_to_put_the_files(monkeypatch):
    def no_network(url):
        raise URLError("no network")

    asked = []
    monkeypatch.setattr(url, "decide_download", lambda url: asked.append(url) or no_network(url))
    line = refused("--dataset=ml-1m", "--config_files=adarec.yaml")
    assert asked and asked[0].endswith("ml-1m.zip")
    assert "could not be downloaded" in line and "ml-1m.inter" in line
    assert not any(Path("dataset").iterdir())


def test_a_download_that_works_is_used(monkeypatch, tmp_path):
    import zipfile

    source = write_dataset(tmp_path / "source", "ml-1m", [[i + 1 for i in range(j, j + 6)] for j in range(12)])

    def download(url, folder):
        with zipfile.ZipFile(Path(folder) / "ml-1m.zip", "w") as archive:
            archive.write(source / "ml-1m" / "ml-1m.inter", "ml-1m.inter")
        return str(Path(folder) / "ml-1m.zip")

    monkeypatch.setattr(url, "decide_download", lambda url: True)
    monkeypatch.setattr(url, "download_url", download)
    from recbole_adarec.data.loading import load_data

    data = load_data(stage_config(resolve("ml-1m", [], {}), "teacher"))
    assert data.dataset.user_num == 13 and Path("dataset/ml-1m/ml-1m.inter").is_file()
