"""Files that version 0.1.0 wrote: models recommend what they did, and folders continue without training anything."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from recbole_adarec import AdaRecError, Architecture, load_student, load_teacher
from recbole_adarec.cli import main
from recbole_adarec.storage.recbole_checkpoint import read_checkpoint

ARCHIVE = Path(__file__).parent / "files/files_of_version_0_1_0.tar.gz"
HISTORIES = [["1", "2", "3"], ["7"], ["20", "1", "5", "6", "7", "8"]]  # those of expected.json
# What all of them were trained with.
SHARED = [
    "--dataset=tiny", "--data_path=data", "--teacher_epochs=1", "--search_epochs=1", "--student_epochs=2",
    "--train_batch_size=200", "--show_progress=False", "--latency_repeats=5", "--threads=1",
]  # fmt: skip
SIZES = [
    "--hidden_size=8", "--search_hidden_size=8", "--block_num=1", "--distilled_layers=2", "--cost_budget=0.5",
    "--candidates=2", "--candidate_sizes=[8, 12]", "--candidate_epochs=1", "--finalist_epochs=1", "--inner_size=16",
    "--n_layers=2",
]  # fmt: skip
SEED = ["--seed=2020"]
# Defaults of that version.
FORMER = ["--backbone=NextItNet", "--MAX_ITEM_LIST_LENGTH=50"]
STUDENTS = "students_0_1_0.yaml"
RUNS = {
    "run": FORMER,
    "adaptive": [
        *FORMER, "--item_table=adaptive", "--item_blocks=2", "--item_levels=2", "--item_codes=2",
        "--student_total_budget=~",
        "--total_parameters=4000",
    ],
    "coded": [
        "--item_table=adaptive", "--item_blocks=2", "--item_codes=2", "--item_code_epochs=1", "--backbone=SASRec",
    ],
    "bert4rec": ["--backbone=BERT4Rec"],
    "recbole": [
        "--teacher=GRU4Rec", "--teacher_num_layers=1", "--teacher_embedding_size=8", "--baselines=[SASRec]",
    ],
}  # fmt: skip


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained_again(*_: object, **__: object) -> None:
        pytest.fail("trained again")

    monkeypatch.setattr("recbole.trainer.Trainer.fit", trained_again)


def test_models_recommend_what_they_did(old):
    expected = json.loads((old / "expected.json").read_text())
    assert len(expected) == 23
    for file, recommended in expected.items():
        try:
            model = load_student(file)
        except AdaRecError:
            model = load_teacher(file)
        for history, items in zip(HISTORIES, recommended, strict=True):
            found = model.recommend(history, 5)
            assert [token for token, _ in found] == [token for token, _ in items], file
            assert [score for _, score in found] == pytest.approx([score for _, score in items], abs=1e-4), file


@pytest.mark.parametrize("name", RUNS)
def test_the_same_command_continues_a_run(name, old, nothing_trains):
    before = json.loads((old / name / "report.json").read_text())
    assert main([f"--run_dir={name}", f"--config_files={STUDENTS}", *RUNS[name], *SHARED, *SIZES, *SEED]) == 0
    after = json.loads((old / name / "report.json").read_text())
    for new, expected in zip(after["models"], before["models"], strict=True):
        for key in ("name", "kind", "parameters", "valid", "test"):
            assert new[key] == expected[key]
        if new["name"] == "student":  # it leaves out what one request does not need
            assert new["macs_per_sequence"] <= expected["macs_per_sequence"]
        else:
            assert new["macs_per_sequence"] == expected["macs_per_sequence"]
    for key in ("architecture", "distillation", "teaching"):
        assert after[key] == before[key]


def test_a_stored_configuration_is_a_config_file(old, nothing_trains):
    assert main([f"--config_files=run/config.yaml {STUDENTS}", "--run_dir=run"]) == 0


def test_a_recbole_model_alone_continues(old, nothing_trains):
    values = ["--model=SASRec", "--baseline_hidden_size=8", "--baseline_inner_size=16", "--epochs=1"]
    sizes = [argument for argument in SIZES if not any(key in argument for key in ("hidden", "inner", "n_layers"))]
    assert main(["--run_dir=alone", *values, *SHARED, *sizes, *SEED]) == 0


def test_studies_continue(old, nothing_trains):
    pytest.importorskip("hyperopt")
    assert main([
        "compare", "--models=CpRec AdaRecStudent", "--fast_baselines", "--output=compare", *FORMER, *SHARED,
        *SIZES, *SEED, "--cprec_epochs=1", f"--config_files={STUDENTS}",
    ]) == 0  # fmt: skip
    common = [f"--config_files={STUDENTS}", "--seeds=[2020]", "--output=experiments", *FORMER, *SHARED, *SIZES]
    assert main(["experiment", "ablation", "--arms=[no distillation]", *common]) == 0
    assert main(["experiment", "cprec", "--arms=[CpRec]", *common, "--cprec_epochs=1"]) == 0
    assert (
        main(["tune", "--params_file=space.yaml", "--output=tuning", *common[:1], *FORMER, *SHARED, *SIZES, *SEED]) == 0
    )


def test_architecture_files_and_recbole_checkpoints_are_read(old):
    architecture = Architecture.load(old / "run/architecture.yaml")
    architecture.save(old / "again.yaml")
    assert (old / "again.yaml").read_text() == (old / "run/architecture.yaml").read_text()
    checkpoint = read_checkpoint(old / "recbole_checkpoint/SASRec.pth")
    assert checkpoint.model == "SASRec" and checkpoint.config["hidden_size"] == 8
    assert checkpoint.state_dict["item_embedding.weight"].shape == (21, 8)
