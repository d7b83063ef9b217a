"""Writes a dataset as a RecBole atomic file, and runs on it.

python examples/own_data.py
"""

import random
from pathlib import Path

from recbole_adarec import load_student, run_adarec

DATA, NAME, RUN_DIR = Path("data"), "mine", "saved/own-data"
USERS, ITEMS = 200, 40
SMALL = {
    "teacher_epochs": 2, "search_epochs": 1, "student_epochs": 4, "hidden_size": 16, "block_num": 1, "cells": 2,
    "distilled_layers": 2, "cost_budget": 0.5, "candidates": 1, "candidate_sizes": None, "latency_repeats": 20,
    "train_batch_size": 200, "show_progress": False,
}  # fmt: skip


def write_interactions(path: Path) -> None:
    """Users walk through the catalog: the item after the last one, nine times out of ten."""
    rng = random.Random(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(USERS):
        item = rng.randrange(ITEMS)
        for time in range(rng.randrange(8, 30)):
            lines.append(f"user-{user:03}\titem-{item:02}\t{time}")
            item = (item + 1) % ITEMS if rng.random() < 0.9 else rng.randrange(ITEMS)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    write_interactions(DATA / NAME / f"{NAME}.inter")
    # On the command line: python run_adarec.py --dataset=mine --data_path=data
    run_adarec(dataset=NAME, config_dict={**SMALL, "data_path": str(DATA)}, run_dir=RUN_DIR)
    for item, score in load_student(RUN_DIR).recommend(["item-05", "item-06", "item-07"], k=3):
        print(item, f"{score:.2f}")


if __name__ == "__main__":
    main()
