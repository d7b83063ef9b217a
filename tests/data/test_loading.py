"""Data that cannot be used gets one line on stderr and exit code 2; nothing is overwritten."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from urllib.error import URLError

import pytest
from recbole.utils import url

from recbole_adarec.cli import main
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.stages import stage_config
from tests.helpers import refused, write_dataset


def test_an_unknown_dataset():
    assert "unknown dataset 'ml-100kk': looked for" in refused("--dataset=ml-100kk")


def test_unknown_dataset_says_where_it_looked_and_what_is_there(tmp_path):
    folder = write_dataset(tmp_path, "beauty", [[1, 2, 3, 4]])
    line = refused("--dataset=beuty", f"--data_path={folder}")
    assert str(folder) in line and "the nearest is 'beauty'" in line


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

    data = load_data(stage_config(resolve_user_config("ml-1m", [], {}), "teacher"))
    assert data.dataset.user_num == 13 and Path("dataset/ml-1m/ml-1m.inter").is_file()
