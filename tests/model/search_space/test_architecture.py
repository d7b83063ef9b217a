"""The architecture file: round trip, and one clear line for each error."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.search_space.architecture import FORMAT, FORMAT_2, Architecture, edges
from recbole_adarec.model.search_space.cell import live_edges
from recbole_adarec.storage.properties import PROPERTIES

CELL = [["conv_3"], ["skip", "none"], ["dilated_conv_5", "max_pool_3", "none"]]


def test_round_trip(tmp_path):
    architecture = Architecture.from_dict({"format": FORMAT, "hidden_size": 16, "share_cells": 3, "cells": [CELL]})
    assert len(architecture.cells) == 3 and architecture.nodes == 3
    architecture.save(tmp_path / "a.yaml")
    assert Architecture.load(tmp_path / "a.yaml") == architecture
    assert yaml.safe_load((tmp_path / "a.yaml").read_text())["cells"][0] == CELL
    assert architecture.count() == {"conv_3": 3, "dilated_conv_5": 3, "max_pool_3": 3, "skip": 3, "none": 6}


def test_round_trip_with_the_form_of_its_cells(tmp_path):
    for form, repeats in (("residual", 1), ("residual", 3), ("relu", 2)):
        architecture = Architecture(16, (("filter",), ("feed_forward",)), form, repeats)
        architecture.save(tmp_path / "a.yaml")
        assert Architecture.load(tmp_path / "a.yaml") == architecture
        assert yaml.safe_load((tmp_path / "a.yaml").read_text())["format"] == FORMAT_2


def test_is_immutable():
    architecture = Architecture(8, (("skip",),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        architecture.hidden_size = 9


def test_edges_are_ordered_by_node():
    assert edges(3) == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


def test_edges_behind_a_node_without_input_are_not_live():
    assert live_edges(("none", "conv_3", "conv_3", "skip", "conv_5", "none"), 3) == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other/1"}, "format is 'other/1'"),
        ({"cell_form": "residual"}, "unknown key 'cell_form'; known are format, hidden_size, cells, share_cells"),
        ({"format": FORMAT_2, "cell_form": "round"}, "cell_form is 'round'; known are relu, residual"),
        ({"hidden_size": "large"}, "hidden_size is 'large'"),
        ({"format": FORMAT_2}, "cell_form is missing, expected one of relu, residual"),
        ({"repeats": 2}, "unknown key 'repeats'"),
        ({"format": FORMAT_2, "cell_form": "relu", "repeats": 0}, "repeats is 0, expected a whole number"),
        ({"hidden_size": 0}, "hidden_size is 0, expected a whole number of at least 1"),
        ({"cells": []}, "expected a list of cells"),
        ({"cells": [[["conv_3"], ["skip"]]]}, "node 2 of cell 1"),
        ({"cells": [[["conv_9"]]]}, "unknown operation 'conv_9'; the nearest is 'conv_5'; known are conv_3"),
        ({"cells": [CELL, [["skip"]]]}, "all must have the same number"),
        ({"cels": []}, "unknown key 'cels'"),
        ({"share_cells": 0}, "share_cells is 0"),
    ],
)
def test_an_error_is_named(change, message):
    with pytest.raises(AdaRecError, match=message):
        Architecture.from_dict({"format": FORMAT, "hidden_size": 8, "cells": [CELL], **change})


def test_files_that_hold_no_architecture_are_refused(tmp_path):
    for content in ("[1, 2", "just text", "- 1"):
        (tmp_path / "x.yaml").write_text(content)
        with pytest.raises(AdaRecError, match="x.yaml"):
            Architecture.load(tmp_path / "x.yaml")
    with pytest.raises(AdaRecError, match="cannot read"):
        Architecture.load(tmp_path / "missing.yaml")


def test_the_shipped_architecture_loads():
    assert Architecture.load(PROPERTIES / "architecture/default.yaml").hidden_size == 32
