"""Trains a teacher on MovieLens-100k, searches a student and trains it, with small settings.

    python examples/first_run.py

Leave `SMALL` out for a real run: minutes instead of seconds. A second call finds the finished stages and trains none.
"""

from recbole_adarec import run_adarec

RUN_DIR = "saved/first-run"
SMALL = {
    "teacher_epochs": 1, "search_epochs": 1, "student_epochs": 1, "hidden_size": 32, "block_num": 1, "cells": 2,
    "distilled_layers": 2, "cost_budget": 0.5, "candidates": 1, "candidate_sizes": None, "latency_repeats": 20,
    "show_progress": False,
    "item_inter_num_interval": "[250,inf)",  # popular films alone, to be quick
}  # fmt: skip


def main() -> None:
    report = run_adarec(dataset="ml-100k", config_dict=SMALL, run_dir=RUN_DIR)
    for model in report["models"]:
        layers, ndcg = model["parameters"]["layers"], model["test"]["ndcg@10"]
        print(f"{model['name']:8} {layers:8,} parameters in the layers, test NDCG@10 {ndcg:.4f}")
    print("operations:", report["architecture"]["operations"])
    print(f"report: {RUN_DIR}/report.html")


if __name__ == "__main__":
    main()
