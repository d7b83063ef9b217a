"""RecBole's models as teachers: adapters give the models' scores at every position that they claim."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import Any

import pytest
import torch
from recbole.utils import get_model

from recbole_adarec import AdaRecError, TeacherAdapter, load_student, load_teacher, run_adarec, teacher_adapter
from recbole_adarec.cli import main
from recbole_adarec.config.resolve import full_config, resolve_user_config
from recbole_adarec.config.stages import make_config, stage_config
from recbole_adarec.data.loading import Loaders, load_data
from recbole_adarec.distillation.layer_mapping import DISTANCES
from recbole_adarec.distillation.teacher_outputs import CachedTeacher, LiveTeacher
from recbole_adarec.evaluation.profile import count_parameters
from recbole_adarec.model.search_space.cost import layers_cost
from recbole_adarec.model.stored import load_model
from recbole_adarec.model.teachers.adapters import TEACHER_ADAPTERS
from recbole_adarec.model.teachers.recbole_teacher import RecBoleTeacher
from recbole_adarec.storage.files import plain
from recbole_adarec.storage.yaml_files import load_yaml
from tests.helpers import RECBOLE_MODELS, WITH_CHOICE, write_dataset

EVERY_POSITION = {"SASRec", "GRU4Rec"}
LAYERS = {
    "SASRec": 2, "GRU4Rec": 1, "NextItNet": 8, "BERT4Rec": 2, "Caser": 0, "STAMP": 0, "NARM": 1, "LightSANs": 2,
    "CORE": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tiny) -> Loaders:
    return load_data(stage_config(values(tiny), "teacher"))


def values(tiny: Any, **others: Any) -> dict[str, Any]:
    return resolve_user_config("tiny", [], {"data_path": str(tiny), "MAX_ITEM_LIST_LENGTH": 12, **others})


def build_teacher(tiny: Any, data: Loaders, name: str, **others: Any) -> RecBoleTeacher:
    """A RecBole model with random weights, large enough that all states differ."""
    overrides = values(tiny, **others)
    config = stage_config(overrides, "teacher", stock=plain(make_config(name, overrides).final_config_dict))
    torch.manual_seed(1)
    teacher = get_model("AdaRecTeacher")(config, data.train._dataset).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return teacher


@torch.no_grad()
@pytest.mark.parametrize("name", TEACHER_ADAPTERS)
def test_distillation_targets_give_recboles_scores_of_each_prefix(tiny, data, name):
    """At every position that it claims: `full_sort_predict` of the RecBole model on the history up to it."""
    teacher = build_teacher(tiny, data, name)
    batch = data.train._dataset[torch.arange(6)]
    item_seq, users = batch[teacher.ITEM_SEQ], batch[teacher.USER_ID]
    encoding, mask = teacher.distillation_targets_in(batch)
    rows, columns = mask.nonzero(as_tuple=True)
    prefix = torch.zeros(len(rows), teacher.max_seq_length, dtype=torch.long)
    for k, (row, column) in enumerate(zip(rows, columns, strict=True)):
        prefix[k, : column + 1] = item_seq[row, : column + 1]
    interaction = {teacher.ITEM_SEQ: prefix, teacher.ITEM_SEQ_LEN: columns + 1, teacher.USER_ID: users[rows]}
    expected = teacher.stock.full_sort_predict(interaction)
    torch.testing.assert_close(encoding.output @ teacher.item_table.items.T, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(mask, item_seq != 0) == (name in EVERY_POSITION)
    assert mask[torch.arange(6), (item_seq != 0).sum(1) - 1].all()
    assert len(encoding.layers) == teacher.distilled_layers == LAYERS[name]
    assert all(layer.shape == (len(rows), teacher.hidden_size) for layer in encoding.layers)
    assert encoding.embedding.shape == (len(rows), teacher.embedding_size)


@torch.no_grad()
@pytest.mark.parametrize("name", ["NextItNet", "LightSANs", "GRU4Rec"])
def test_layers_do_not_depend_on_items_after_the_prefix(tiny, data, name):
    """Else the student would learn from items that it cannot see."""
    teacher = build_teacher(tiny, data, name)
    batch = data.train._dataset[torch.arange(4)]
    encoding, mask = teacher.distillation_targets_in(batch)
    rows, columns = mask.nonzero(as_tuple=True)
    changed = batch[teacher.ITEM_SEQ].clone()
    middle = columns[rows == 0][0]
    changed[0, middle + 1 :] = changed[0, middle + 1 :] % 20 + 1 * (changed[0, middle + 1 :] != 0)
    batch.update(type(batch)({teacher.ITEM_SEQ: changed}))
    other, _ = teacher.distillation_targets_in(batch)
    for before, after in zip([*encoding.layers, encoding.output], [*other.layers, other.output], strict=True):
        torch.testing.assert_close(before[0], after[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoding.output[rows == 0][-1], other.output[rows == 0][-1])  # which depends on them


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"layers": "trm_encoder.layer.*", "outputs": "trm_encoder.layer.*"}, "before the end of a sequence"),
        ({"table": lambda self, model: 2 * model.item_embedding.weight}, "at the end of a sequence"),
    ],
)
def test_an_adapter_that_claims_too_much_is_refused(tiny, data, monkeypatch, attributes, words):
    """LightSANs pools over all positions: its states before the end are of no prefix."""
    monkeypatch.setitem(TEACHER_ADAPTERS, "LightSANs", TEACHER_ADAPTERS["LightSANs"])
    teacher_adapter("LightSANs")(type("Wrong", (TeacherAdapter,), attributes))
    with pytest.raises(AdaRecError, match=f"adapter of LightSANs does not give the model's own scores {words}"):
        build_teacher(tiny, data, "LightSANs").check(next(iter(data.valid))[0][:8])


def test_an_adapter_that_names_no_module_is_refused(tiny, data, monkeypatch):
    monkeypatch.setitem(TEACHER_ADAPTERS, "SASRec", type("Wrong", (TeacherAdapter,), {"layers": "encoder.*"}))
    with pytest.raises(AdaRecError, match=r"SASRec has no module 'encoder\.\*'.* it has item_embedding, .*trm_encoder"):
        build_teacher(tiny, data, "SASRec")


def test_a_model_without_an_adapter_is_distilled_by_its_outputs_or_refused(tiny, data):
    teacher = build_teacher(tiny, data, "SRGNN")
    teacher.check(next(iter(data.valid))[0][:8])
    assert teacher.distilled_layers == 0 and "no L_hid" in teacher.describe()
    with pytest.raises(AdaRecError, match="nothing is known about how to read HGN; known are SASRec.*@teacher_adapter"):
        build_teacher(tiny, data, "HGN")


@torch.no_grad()
@pytest.mark.parametrize("name", ["GRU4Rec", "BERT4Rec", "STAMP"])
def test_cached_targets_equal_live_targets(tiny, data, name):
    """Embedding, layers and output of different sizes, or no layers at all."""
    live = LiveTeacher(build_teacher(tiny, data, name), DISTANCES["kl"])
    part = data.train._dataset
    cached, batch = CachedTeacher(live, part, temperature=2.0), part[torch.tensor([5, 0, 9])]
    targets, expected = cached.targets_of(batch), live.targets_of(batch)
    assert torch.equal(targets.rows, expected.rows) and targets.every_position == expected.every_position
    for actual, other in zip(targets[2:-1], expected[2:-1], strict=True):
        torch.testing.assert_close(actual, other, rtol=2e-3, atol=2e-3)


def test_cost_of_the_layers_of_a_recbole_model(tiny, data):
    teacher = build_teacher(tiny, data, "GRU4Rec")
    gru, dense = 3 * 128 * (64 + 128), 128 * 64
    assert layers_cost(teacher, "params") == count_parameters(teacher)["layers"] == gru + dense + 64
    assert layers_cost(teacher, "macs") == gru + dense
    assert layers_cost(teacher, "latency") > 0


# ---------------------------------------------------------------------- whole runs

SMALL = {key: value for key, value in WITH_CHOICE.items() if key not in ("teacher_hidden_size", "teacher_epochs")}
SMALL |= {"search_epochs": 2, "candidates": 2, "candidate_sizes": None, "student_epochs": 1}


@pytest.fixture(scope="module")
def distilled(tiny, stock, tmp_path_factory):
    """The whole run: only the checkpoint is named, and where the data is."""
    folder = tmp_path_factory.mktemp("run") / "r"
    given = SMALL | {"teacher": str(stock["SASRec"]), "data_path": str(tiny)}
    return folder, given, run_adarec(config_dict=given, run_dir=folder)


def test_a_recbole_checkpoint_is_distilled_on_the_data_of_its_configuration(distilled):
    folder, _, report = distilled
    assert report["dataset"] == "tiny" and report["models"][0]["kind"] == "SASRec (RecBole)"
    assert "2 layers" in report["teaching"] and report["teaching"] in (folder / "report.md").read_text()
    config = load_yaml(folder / "config.yaml")
    assert config["user_inter_num_interval"] == "[9,inf)" and config["MAX_ITEM_LIST_LENGTH"] == 12
    content = torch.load(folder / "teacher.pth", weights_only=True)
    assert content["config"]["stock"]["hidden_size"] == 16 and content["epochs"] == 1
    assert "in its checkpoint" in (folder / "log.txt").read_text()  # the validation result is the recorded one
    teacher = load_model(folder / "teacher.pth", expected="AdaRecTeacher")
    assert report["models"][0]["parameters"]["layers"] == layers_cost(teacher, "params")
    search = report["architecture"]["search"]
    assert search["cost"] <= search["cost_budget"]


@torch.no_grad()
def test_a_recbole_teacher_ranks_with_repeat_bias_and_the_report_has_recboles_figure(distilled, data):
    folder, _, report = distilled
    content = torch.load(folder / "teacher.pth", weights_only=True)
    as_recbole = content["as_recbole"]["test"]["ndcg@10"]
    assert content["state_dict"]["repeat_bias"] != 0 and f"is {as_recbole:.4f}" in report["teaching"]
    teacher = load_model(folder / "teacher.pth", expected="AdaRecTeacher")
    rows = data.test._dataset[torch.arange(8)]
    rows.interaction["item_id"] = rows["item_id_list"][:, 0]
    scores = teacher.full_sort_predict(rows)
    torch.testing.assert_close(teacher.predict(rows), scores.gather(1, rows["item_id"][:, None])[:, 0])
    changed = (scores - teacher.recbole_scores(rows)).abs() > 1e-4
    seen = torch.zeros_like(changed).scatter(1, rows["item_id_list"], True)
    assert torch.equal(changed[:, 1:], seen[:, 1:])


@pytest.mark.parametrize("bias", [0.0, -2.0])
def test_a_given_bias_is_used_by_a_recbole_teacher_too(distilled, tmp_path, bias):
    _, given, _ = distilled
    report = run_adarec(config_dict=given | {"repeat_bias": bias}, run_dir=tmp_path / "r")
    for name in ("teacher", "student"):
        content = torch.load(tmp_path / "r" / f"{name}.pth", weights_only=True)
        assert float(content["state_dict"]["repeat_bias"]) == bias
    assert ("as RecBole ranks them" in report["teaching"]) == (bias != 0)


def test_a_continued_run_gives_the_same_numbers(distilled, tmp_path):
    folder, given, report = distilled
    shutil.copytree(folder, tmp_path / "again")
    (tmp_path / "again" / "student.pth").unlink()
    (tmp_path / "again" / "teacher.pth").unlink()
    again = run_adarec(config_dict=given, run_dir=tmp_path / "again")
    assert [m["test"] for m in again["models"]] == [m["test"] for m in report["models"]]
    expected, actual = (torch.load(f / "student.pth", weights_only=True) for f in (folder, tmp_path / "again"))
    assert all(torch.equal(expected["state_dict"][name], actual["state_dict"][name]) for name in expected["state_dict"])


def test_config_yaml_gives_the_same_run(distilled):
    folder, _, _ = distilled
    assert full_config(resolve_user_config(None, [str(folder / "config.yaml")], {})) == load_yaml(
        folder / "config.yaml"
    )


def test_recommend_shows_student_and_teacher_side_by_side(distilled, tiny, capsys):
    folder, _, _ = distilled
    assert main(["recommend", f"--run_dir={folder}", "--history=3 4", "--k=3"]) == 0
    out = capsys.readouterr().out
    best = [load(folder).recommend(["3", "4"], k=3)[0] for load in (load_student, load_teacher)]
    assert all(f"| {token}" in out and f"{score:.4g}" in out for token, score in best)
    rows = [line.split("\t") for line in (tiny / "tiny/tiny.inter").read_text().splitlines()[1:]]
    lengths = Counter(row[0] for row in rows)
    user, other = [user for user in lengths if lengths[user] >= 9][1:3]
    users = f"--users=[{user}, {other}]"
    assert main(["recommend", f"--run_dir={folder}", users, "--k=20", f"--data_path={tiny}"]) == 0
    out = capsys.readouterr().out
    history = [row[1] for row in rows if row[0] == user]
    assert f"user {user}: … {' '.join(history[-6:-1])}, then {history[-1]}" in out and f"user {other}: " in out
    assert out.count(f" {history[-1]} *") >= 2  # of 20 items, in both columns
    for arguments, words in (
        (["--users=[99]", f"--data_path={tiny}"], "has no user '99'"),
        (["--history=99"], "unknown item '99'; this student knows 20 items"),
        ([], "give --run_dir= and one of"),
    ):
        assert main(["recommend", f"--run_dir={folder}", *arguments]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"user_inter_num_interval": "[0,inf)"}, r"trained with user_inter_num_interval='\[9,inf\)'"),
        ({"MAX_ITEM_LIST_LENGTH": 50}, "trained with MAX_ITEM_LIST_LENGTH=12, and 50 is given"),
        ({"dataset": "ml-100k"}, "trained with dataset='tiny'"),
        ({"teacher_epochs": 3}, "is trained already; leave teacher_epochs out"),
        ({"eval_args": {"split": {"RS": [8, 1, 1]}, "order": "TO", "mode": "full"}}, "seen the test data"),
    ],
    ids=str,
)
def test_a_teacher_of_other_data_is_refused_by_name(stock, tiny, tmp_path, given, words):
    run = SMALL | {"teacher": str(stock["SASRec"]), "data_path": str(tiny)} | given
    with pytest.raises(AdaRecError, match=words):
        run_adarec(config_dict=run, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_of_the_same_name_and_other_content_is_refused(stock, tiny, tmp_path):
    """Fewer items do not fit; the same items in another order are detected by the recorded validation result."""
    lines = (tiny / "tiny/tiny.inter").read_text().splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    histories: dict[str, list[int]] = {}
    for user, item, _ in rows:
        histories.setdefault(user, []).append(int(item))
    swapped = [[(7 * item) % 20 + 1 for item in history] for history in histories.values()]
    for name, content, words in (
        (
            "fewer",
            [[(item % 10) + 1 for item in h] for h in histories.values()],
            r"item_embedding.weight is \[21, 16\]",
        ),
        ("swapped", swapped[::-1], "had validation .* when RecBole trained it"),
    ):
        folder = write_dataset(tmp_path / name, "tiny", content)
        with pytest.raises(AdaRecError, match=words):
            given = SMALL | {"teacher": str(stock["SASRec"]), "data_path": str(folder)}
            run_adarec(config_dict=given, run_dir=tmp_path / f"run-{name}")


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ("NoSuchModel", "RecBole has no model 'NoSuchModel'"),
        ("BPR", "BPR is no sequential model"),
        ("saved/nowhere.pth", r"no checkpoint at saved/nowhere\.pth"),
    ],
)
def test_a_name_that_is_no_teacher_is_refused(teacher, words):
    with pytest.raises(AdaRecError, match=words):
        run_adarec(config_dict={"teacher": teacher}, run_dir="run")


def test_a_named_model_is_trained_and_distilled_without_layers(tiny, tmp_path):
    given = SMALL | {"teacher": "STAMP", "data_path": str(tiny), "teacher_epochs": 1, "teacher_embedding_size": 8}
    report = run_adarec("tiny", config_dict=given, run_dir=tmp_path / "run")
    assert report["models"][0]["kind"] == "STAMP (RecBole)" and report["distillation"] is None
    assert "no layered states, so there is no L_hid" in (tmp_path / "run" / "report.md").read_text()
    last = torch.load(tmp_path / "run" / "student.pth", weights_only=True)["history"][-1]
    assert {"output", "embedding"} <= set(last) and "hidden" not in last
    config = load_yaml(tmp_path / "run" / "config.yaml")
    assert config["teacher_embedding_size"] == 8 and config["teacher_epochs"] == 1
    assert full_config(resolve_user_config(None, [str(tmp_path / "run" / "config.yaml")], {})) == config


def test_our_own_name_is_the_whole_run():
    assert resolve_user_config(None, [], {"model": "AdaRecStudent"}) == resolve_user_config(None, [], {})


def test_a_recbole_model_alone(tiny, tmp_path, monkeypatch):
    given = {
        "data_path": str(tiny),
        "epochs": 1,
        "show_progress": False,
        "latency_repeats": 2,
        **RECBOLE_MODELS["STAMP"],
    }
    report = run_adarec("tiny", config_dict=given, run_dir=tmp_path / "run", model="STAMP")
    (model,) = report["models"]
    assert model["name"] == "STAMP" and {"ndcg@10", "recall@10"} <= set(model["test"])
    assert model["parameters"]["item_table"] == 21 * 8
    assert "STAMP on tiny" in (tmp_path / "run" / "report.md").read_text()
    config = str(tmp_path / "run" / "config.yaml")
    monkeypatch.setattr("recbole_adarec.interop.baselines.get_trainer", lambda *_: pytest.fail("trained again"))
    again = run_adarec(config_file_list=[config], config_dict={"data_path": str(tiny)}, run_dir=tmp_path / "run")
    assert again["models"][0]["test"] == model["test"]
    with pytest.raises(AdaRecError, match="embedding_size is 8 there and 4 now"):
        run_adarec("tiny", config_dict=given | {"embedding_size": 4}, run_dir=tmp_path / "run", model="STAMP")
