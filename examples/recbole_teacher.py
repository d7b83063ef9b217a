"""Trains RecBole's SASRec with RecBole, as always, and distils it from the checkpoint that RecBole wrote.

python examples/recbole_teacher.py
"""

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

from recbole_adarec import run_adarec

RUN_DIR = "saved/recbole-teacher"
RECBOLE = {
    "epochs": 1, "hidden_size": 16, "inner_size": 32, "MAX_ITEM_LIST_LENGTH": 10, "train_batch_size": 4096,
    "train_neg_sample_args": None, "item_inter_num_interval": "[250,inf)", "show_progress": False,
}  # fmt: skip
SMALL = {
    "search_epochs": 1, "student_epochs": 1, "search_hidden_size": 8, "cells": 2, "cost_budget": 0.5, "candidates": 1,
    "candidate_sizes": None, "latency_repeats": 20, "show_progress": False,
}  # fmt: skip


def train_with_recbole() -> str:
    """RecBole's own road; returns the path of its checkpoint."""
    config = Config(model="SASRec", dataset="ml-100k", config_dict=RECBOLE)
    init_seed(config["seed"], config["reproducibility"])
    train, valid, _ = data_preparation(config, create_dataset(config))
    model = get_model(config["model"])(config, train.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(train, valid, show_progress=False)
    return str(trainer.saved_model_file)


def main() -> None:
    checkpoint = train_with_recbole()
    # Dataset, filters and split are read from the checkpoint: --teacher=saved/SASRec-….pth on the command line.
    report = run_adarec(config_dict={**SMALL, "teacher": checkpoint}, run_dir=RUN_DIR)
    print(report["teaching"])
    for model in report["models"]:
        print(f"{model['name']:8} {model['parameters']['layers']:8,} {model['test']['ndcg@10']:.4f}")


if __name__ == "__main__":
    main()
