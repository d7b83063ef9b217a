"""Windows hold each training interaction once, and evaluation rows equal those of RecBole's dataset."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import SequentialDataset
from recbole.trainer import Trainer
from recbole.utils import FeatureSource, init_seed

from recbole_adarec.data.dataset import SequenceDataset
from recbole_adarec.data.loading import load_data
from recbole_adarec.data.windows import cut_windows, length_batches, split_users
from tests.helpers import make_config, write_dataset


def recbole_parts(config):
    """RecBole's dataset of a configuration, split into three parts."""
    dataset = SequentialDataset(config)
    return dataset.build()


def test_window_targets_are_exactly_the_training_interactions(ml100k):
    config = make_config("teacher")
    train = recbole_parts(config)[0].inter_feat
    expected = sorted(zip(train["user_id"].tolist(), train["item_id"].tolist(), strict=True))
    batches = [ml100k.train._dataset[index] for index in torch.arange(len(ml100k.train._dataset)).split(100)]
    pairs = []
    for batch in batches:
        real = batch["target_item_id_list"] != 0
        users = batch["user_id"][:, None].expand_as(real)[real]
        pairs += list(zip(users.tolist(), batch["target_item_id_list"][real].tolist(), strict=True))
    assert sorted(pairs) == expected


def test_window_inputs_are_the_items_before_their_targets(ml100k):
    dataset = ml100k.train._dataset
    batch = dataset[torch.arange(len(dataset))]
    inputs, targets, lengths = batch["item_id_list"], batch["target_item_id_list"], batch["item_length"]
    both = (targets[:, :-1] != 0) & (inputs[:, 1:] != 0)
    assert torch.equal(inputs[:, 1:][both], targets[:, :-1][both])
    assert torch.equal((inputs != 0).sum(1), lengths) and torch.equal((targets != 0).sum(1), lengths)


def test_evaluation_rows_equal_those_of_recbole(ml100k):
    _, valid, test = recbole_parts(make_config("teacher"))
    for actual, recbole in ((ml100k.valid._dataset, valid), (ml100k.test._dataset, test)):
        assert isinstance(actual, SequenceDataset)
        rows, expected = actual[torch.arange(len(actual))], recbole[torch.arange(len(recbole))]
        for field in ("user_id", "item_id", "item_id_list", "item_length"):
            assert torch.equal(rows[field], expected[field]), field


class Fixed(torch.nn.Module):
    """Scores that depend on the history in a fixed way, without training."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(n_items, 16, generator=torch.Generator().manual_seed(3)))

    def full_sort_predict(self, interaction):
        last = interaction["item_id_list"].gather(1, interaction["item_length"][:, None] - 1)[:, 0]
        return self.table[last] @ self.table.T


def test_metrics_of_a_fixed_model_equal_those_of_recbole(ml100k):
    config = make_config("teacher")
    recbole_config = make_config("teacher")
    recbole_config["model"] = "SASRec"  # then RecBole makes its own dataset class
    loaders = data_preparation(recbole_config, create_dataset(recbole_config))
    assert type(loaders[1]._dataset) is SequentialDataset
    model = Fixed(ml100k.dataset.item_num)
    results = [
        Trainer(config, model).evaluate(data, load_best_model=False)
        for data in (ml100k.valid, loaders[1], ml100k.test, loaders[2])
    ]
    assert results[0] == results[1] and results[2] == results[3]
    assert results[0] != results[2]


@pytest.mark.parametrize("max_length", [1, 3, 50])
def test_windows_partition_their_targets(max_length):
    rng = np.random.default_rng(max_length)
    sizes = rng.integers(1, 120, 40)  # histories; the first item of each is no target
    ends = np.cumsum(sizes)
    users = np.repeat(np.arange(40), sizes)
    targets = np.setdiff1d(np.arange(ends[-1]), ends - sizes)
    windows = cut_windows(targets, users[targets], max_length)
    covered = [range(s + 1, s + n + 1) for s, n in zip(windows.start.tolist(), windows.length.tolist(), strict=True)]
    assert sorted(index for part in covered for index in part) == targets.tolist()
    assert windows.length.max() <= max_length and windows.length.min() >= 1
    for start, length, user in zip(*(part.tolist() for part in windows), strict=True):
        assert set(users[start : start + length + 1]) == {user}
    # Cut from the end: only the first window of a user may be short.
    for user in set(windows.user.tolist()):
        assert (windows.length[windows.user == user][1:] == max_length).all()


def test_memory_of_rows_does_not_grow_with_their_length(ml100k):
    dataset = ml100k.test._dataset
    stored = sum(value.numel() for value in dataset.inter_feat.interaction.values())
    assert stored <= 8 * len(dataset)  # two offsets and the raw fields, no list of 50


def test_split_users_is_a_partition_by_user():
    users = torch.randint(0, 100, (500,))
    first, second = split_users(users, 0.3, seed=1)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(500))
    assert not set(users[first].tolist()) & set(users[second].tolist())
    assert torch.equal(second, split_users(users, 0.3, seed=1)[1])


def test_length_batches_hold_each_window_once_and_little_padding():
    length = torch.randint(1, 51, (1000,))
    windows = torch.arange(1000)
    batches = length_batches(windows, length, 800, torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat(batches).sort().values, windows)
    sizes = sorted(int(length[b].sum()) for b in batches)
    assert sizes[1] > 800 - 50 and sizes[-1] <= 800 + 50  # only the last batch may be small
    padding = 1 - length.sum() / sum(length[b].max() * len(b) for b in batches)
    assert padding < 0.1
    again = length_batches(windows, length, 800, torch.Generator().manual_seed(1))
    assert not all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def parts_of(kind, folder, name, eval_args):
    """User, item and prefix length of every row of the three parts, as a dataset class splits them."""
    values = {"eval_args": {"order": "TO", "group_by": "user", "mode": "full", **eval_args}, "data_path": str(folder)}
    config = make_config("teacher", name, **values)
    init_seed(2020, True)
    parts = kind(config).build()
    fields = ("user_id", "item_id", "item_length")
    return [[part.inter_feat[field].tolist() for field in fields] for part in parts]


@pytest.mark.parametrize(
    "eval_args",
    [
        {"split": {"LS": "valid_and_test"}}, {"split": {"RS": [0.8, 0.1, 0.1]}},
        {"split": {"RS": [0.7, 0.2, 0.1]}, "group_by": None}, {"split": {"RS": [6, 1, 1]}, "group_by": "user"},
    ],
)  # fmt: skip
def test_rows_are_split_as_recbole_splits_them(eval_args, tmp_path):
    """Same users, items, lengths and order, without its loops; histories of 1 to 9 make every border case."""
    histories = [[int(i) for i in np.random.default_rng(u).integers(1, 30, 1 + u % 9)] for u in range(60)]
    write_dataset(tmp_path, "short", histories)
    expected = parts_of(SequentialDataset, tmp_path, "short", eval_args)
    assert parts_of(SequenceDataset, tmp_path, "short", eval_args) == expected


@pytest.mark.parametrize("number", [1, 2])
def test_leave_one_out_indices_are_recboles(number):
    keys = np.random.default_rng(0).integers(0, 40, 120)
    dataset = object.__new__(SequenceDataset)
    expected = SequentialDataset._split_index_by_leave_one_out(
        dataset, SequentialDataset._grouped_index(dataset, keys), number
    )
    parts = dataset._split_index_by_leave_one_out(dataset._grouped_index(keys), number)
    assert [part.tolist() for part in parts] == expected


def test_files_are_read_as_recbole_reads_them(tmp_path):
    """Quotes, text beyond ASCII, gaps and long numbers, by the C engine; separators of two characters by the other."""
    rows = [
        "user_id:token\titem_id:token\ttimestamp:float",
        'u"1\t"a b"\t0.1',
        "ü\t007\t1e-300",
        "\tNA\t123456789.123456789",
    ]
    for separator in ("\t", "::"):
        (tmp_path / "odd.inter").write_text("\n".join(row.replace("\t", separator) for row in rows) + "\n")
        config = make_config("teacher", "odd", data_path=str(tmp_path))
        config["field_separator"] = separator
        frames = []
        for kind in (SequentialDataset, SequenceDataset):
            dataset = object.__new__(kind)
            dataset.__dict__.update(config=config, logger=logging.getLogger(), field2source={}, field2type={},
                                    field2seqlen={}, field2bucketnum={})  # fmt: skip
            frames.append(dataset._load_feat(str(tmp_path / "odd.inter"), FeatureSource.INTERACTION))
        pd.testing.assert_frame_equal(*frames)


def test_no_python_code_runs_once_an_interaction(tmp_path):
    """Twenty times the interactions of the same users and items call no more functions while they are loaded."""

    def calls(repeats):
        histories = [[1 + (u * 7 + t) % 40 for t in range(20 * repeats)] for u in range(50)]
        config = make_config("teacher", f"x{repeats}", data_path=str(write_dataset(tmp_path, f"x{repeats}", histories)))
        count = 0

        def seen(*_):
            nonlocal count
            count += 1

        sys.setprofile(seen)
        try:
            load_data(config)
        finally:
            sys.setprofile(None)
        return count

    calls(1)  # what is imported or compiled once
    assert calls(40) < calls(2) + 2000 < 20 * 50 * 40
