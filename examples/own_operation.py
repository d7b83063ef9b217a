"""Adds an operation to the search space and searches with it.

    python examples/own_operation.py

The file is its own plugin: on the command line it would be --plugins=examples/own_operation.py
"""

from recbole_adarec import CausalConv, operation, run_adarec

RUN_DIR = "saved/own-operation"
SMALL = {
    "teacher_epochs": 1, "search_epochs": 1, "student_epochs": 1, "hidden_size": 16, "block_num": 1, "cells": 2,
    "distilled_layers": 2, "cost_budget": 0.9, "candidates": 1, "candidate_sizes": None, "latency_repeats": 20,
    "show_progress": False,
    "item_inter_num_interval": "[250,inf)",  # popular films alone, to be quick
}  # fmt: skip


@operation("conv_7", macs=lambda size: 7 * size * size)  # multiply-accumulates of one position
class Conv7(CausalConv):
    """A causal convolution of seven taps, without a bias: zeros stay zeros."""

    def __init__(self, size: int) -> None:
        super().__init__(size, 7, bias=False)


def main() -> None:
    values = {**SMALL, "plugins": __file__, "operations": ["conv_7", "avg_pool_3", "skip", "none"]}
    report = run_adarec(dataset="ml-100k", config_dict=values, run_dir=RUN_DIR)
    print("operations of the student:", report["architecture"]["operations"])


if __name__ == "__main__":
    main()
