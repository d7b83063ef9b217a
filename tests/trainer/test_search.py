"""The search: which parameters it trains on which users, and whether it finds a planted operation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from recbole.utils import get_model, get_trainer, init_seed

from recbole_adarec import run_adarec
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.stages import stage_config
from recbole_adarec.data.loading import load_data
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.profile import count_parameters
from recbole_adarec.model.search_space.architecture import CELL_FORMS, Architecture
from recbole_adarec.model.search_space.budget import within_budget
from recbole_adarec.model.search_space.cost import architecture_cost, layers_cost, model_cost, operation_cost
from recbole_adarec.model.search_space.limits import student_limits
from recbole_adarec.model.search_space.operations import OPERATIONS
from recbole_adarec.model.supernet import Sample, Shape
from tests.helpers import make_config, write_dataset


def build(config, data):
    model = get_model(config["model"])(config, data.train._dataset)
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model), model


@torch.no_grad()
@pytest.mark.parametrize(("form", "repeats"), [*((form, 1) for form in CELL_FORMS), ("residual", 3)])
def test_student_equals_the_supernet_on_its_path(ml100k, form, repeats):
    config = make_config("search", cell_form=form, repeats=repeats)
    supernet = get_model("AdaRecSupernet")(config, ml100k.train._dataset).eval()
    sequence = torch.randint(1, 1000, (5, 20))
    for seed in range(5):
        torch.manual_seed(seed)
        sample = supernet.sample(1.0)
        names = tuple(tuple(supernet.operations[o] for o in cell) for cell in sample.choice[: supernet.cell_count])
        config = make_config("student", architecture=Architecture(supernet.hidden_size, names, form, repeats).to_dict())
        student = get_model("AdaRecStudent")(config, ml100k.train._dataset).eval()
        weights = supernet.state_dict()
        student.load_state_dict({name: weights[name] for name in student.state_dict()})
        expected, actual = supernet.encode_path(sequence, sample.choice), student.encode(sequence)
        assert torch.equal(expected.output, actual.output), names
        assert all(torch.equal(x, y) for x, y in zip(expected.layers, actual.layers, strict=True))


@pytest.mark.parametrize(
    ("frozen", "share", "form", "repeats"),
    [(True, True, "relu", 1), (False, True, "relu", 1), (True, False, "relu", 1), (True, False, "residual", 2),
     (False, True, "residual", 2)],
)  # fmt: skip
def test_gradient_of_the_gates_is_that_of_the_full_mixture(ml100k, frozen, share, form, repeats):
    """Running only the drawn operations gives the exact gradient of α, with trained or frozen weights."""
    names = [name for name in OPERATIONS if name != "none"]
    config = make_config(
        "search", operations=names, search_dropout_prob=0.0, share_cells=share, cell_form=form, repeats=repeats
    )
    supernet = get_model("AdaRecSupernet")(config, ml100k.train._dataset)
    with torch.no_grad():
        supernet.item_table.embedding.weight.mul_(5)
    sequence, weights = torch.randint(1, 1000, (3, 10)), torch.randn(supernet.hidden_size)
    sample = supernet.sample(1.0)

    def mixture(cell, number, source):
        gates = sample.gates[0 if share else cell % supernet.cell_count, number]
        modules = supernet.cells[cell].edges[number]
        return sum(gates[o] * modules[name](source) for o, name in enumerate(supernet.operations))

    (expected,) = torch.autograd.grad(
        (supernet.encode_edges(sequence, mixture).output @ weights).sum(), supernet.alpha, retain_graph=True
    )
    for weight in supernet.weights():
        weight.requires_grad_(frozen is False)
    encoding, trace = supernet.encode_traced(sequence, sample)
    actual = supernet.alpha_gradient(sample, trace, (encoding.output @ weights).sum(), 0.0)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)
    assert expected.abs().max() > 0


def test_drawn_none_is_a_missing_edge_in_both_steps(ml100k):
    supernet = get_model("AdaRecSupernet")(make_config("search"), ml100k.train._dataset).eval()
    none = supernet.operations.index("none")
    gates = torch.zeros_like(supernet.alpha)
    choice = [0, none, 5]
    gates.data[:, range(3), choice] = 1
    sample = Sample(gates, [choice] * 4)
    sequence = torch.randint(1, 1000, (3, 10))
    torch.testing.assert_close(
        supernet.encode_traced(sequence, sample)[0].output, supernet.encode_path(sequence, sample.choice).output
    )


def test_alpha_and_weights_never_learn_from_the_same_user(tiny):
    config = make_config(
        "search", "tiny", data_path=str(tiny), search_epochs=3, train_batch_size=60, alpha_warmup=0.34, cost_budget=None
    )
    data = load_data(config)
    trainer, model = build(config, data)
    seen = {"w": set(), "alpha": set()}
    weight_step, alpha_step = trainer.batch_losses, trainer._alpha_step

    def watch_w(batch):
        seen["w"] |= set(batch.interaction["user_id"].tolist())
        return weight_step(batch)

    def watch_alpha(batch):
        seen["alpha"] |= set(batch.interaction["user_id"].tolist())
        weights = [w.detach().clone() for w in model.weights()]
        before = model.alpha.detach().clone()
        result = alpha_step(batch)
        assert all(torch.equal(w, v) for w, v in zip(weights, model.weights(), strict=True))
        assert not torch.equal(before, model.alpha)
        return result

    trainer.batch_losses, trainer._alpha_step = watch_w, watch_alpha
    trainer.fit(data.train, saved=False, verbose=False)
    assert seen["w"] and seen["alpha"] and not seen["w"] & seen["alpha"]
    assert seen["w"] | seen["alpha"] == set(data.train._dataset.windows.user.tolist())


def test_weight_steps_do_not_change_alpha(tiny):
    config = make_config("search", "tiny", data_path=str(tiny), search_epochs=2, alpha_warmup=1, cost_budget=None)
    data = load_data(config)
    trainer, model = build(config, data)
    trainer.fit(data.train, saved=False, verbose=False)
    assert torch.equal(model.alpha, model.alpha_initial) and model.alpha_statistics()["alpha_moved"] == 0


@pytest.mark.parametrize("share", [True, False])
def test_alpha_finds_the_only_operation_that_reaches_the_signal(tmp_path, share):
    """Histories of period 9: only taps 0, 2, 4, 6, 8 of a dilated kernel of 5 see the item that comes next."""
    rng = torch.Generator().manual_seed(1)
    histories = [(torch.randperm(30, generator=rng)[:9] + 1).repeat(4).tolist() for _ in range(150)]
    folder = write_dataset(tmp_path, "periodic", histories)
    config = make_config(
        "search", "periodic", data_path=str(folder), cells=1, nodes=1, share_cells=share, gamma=0.0, beta=0.0,
        search_epochs=12, search_learning_rate=0.01, search_dropout_prob=0.0, alpha_learning_rate=0.1,
        train_batch_size=300, cost_budget=None,
        operations=["conv_3", "conv_5", "dilated_conv_3", "dilated_conv_5", "sep_conv_5", "max_pool_3", "skip", "none"],
    )  # fmt: skip
    init_seed(1, True)
    data = load_data(config)
    trainer, model = build(config, data)
    with torch.no_grad():  # start on a wrong operation
        model.alpha.zero_()
        model.alpha[..., model.operations.index("skip")] = 0.5
        model.alpha_initial.copy_(model.alpha)
    trainer.fit(data.train, saved=False, verbose=False)
    assert model.derive().cells == (("dilated_conv_5",),)
    assert model.alpha_statistics()["changed_edges"] == 1 and model.alpha_statistics()["alpha_moved"] > 0.3


def within(log_p, costs, budget, **values):
    return within_budget(log_p, costs.double()[:, None] / max(budget, 1e-12), **values)


def test_the_most_probable_choice_within_the_budget():
    log_p = torch.log_softmax(torch.tensor([[[3.0, 2.0, 0.0]], [[3.0, 1.0, 0.0]]]), -1)
    costs = torch.tensor([0.5, 0.2, 0.0])
    assert within(log_p, costs, 1.0, nodes=1) == [[0], [0]]
    assert within(log_p, costs, 0.7, nodes=1) == [[1], [0]]  # the cheaper operation loses less in the first cell
    assert within(log_p, costs, 0.0, nodes=1) == [[2], [2]]
    cheap = torch.log_softmax(torch.tensor([[[0.0, 2.0, 3.0]], [[1.0, 1.5, 3.0]]]), -1)  # it prefers what costs nothing
    assert within(cheap, costs, 0.7, nodes=1) == [[2], [2]]
    assert within(cheap, costs, 0.7, nodes=1, least=0.2) == [[1], [2]]
    assert within(cheap, costs, 0.7, nodes=1, least=0.6) == [[2], [0]]
    assert within(cheap, costs, 9.0, nodes=1, least=1.0) == [[0], [0]]  # no choice costs more
    assert within(log_p[..., :2], costs[:2], 0.1, nodes=1) is None


def test_an_edge_behind_a_node_without_input_costs_nothing():
    # Edges 0-1, 0-2, 1-2; the second operation is none, and node 1 probably has no input.
    log_p = torch.log_softmax(torch.tensor([[[0.0, 2.0], [0.5, 0.0], [2.0, 0.0]]]), -1)
    assert within(log_p, torch.tensor([1.0, 0.0]), 1.0, nodes=2, none=1) == [[1, 0, 1]]
    # All choices, by their probability and cost with dead edges left out.
    torch.manual_seed(0)
    for _ in range(20):
        log_p, costs = torch.randn(1, 3, 3).log_softmax(-1), torch.tensor([1.0, 0.4, 0.0])
        budget, best = float(torch.rand(()) * 3), (-torch.inf, ())
        for choice in itertools.product(range(3), repeat=3):
            dead = choice[0] == 2
            if dead and choice[2] != 2:
                continue
            edges_alive = [0, 1] if dead else [0, 1, 2]
            if sum(float(costs[choice[e]]) for e in edges_alive) <= budget:
                best = max(best, (sum(float(log_p[0, e, choice[e]]) for e in edges_alive), choice))
        assert within(log_p, costs, budget, nodes=2, none=2) == [list(best[1])]


def limited(ml100k, **values):
    values = {"search_hidden_size": 64, **values}
    supernet, teacher = (
        get_model(config["model"])(config, ml100k.train._dataset)
        for config in (make_config(stage, **values) for stage in ("search", "teacher"))
    )
    supernet.limit(student_limits(make_config("search", **values), teacher))
    return supernet, teacher


@pytest.mark.parametrize("cost", ["params", "macs", "latency"])
def test_every_candidate_is_within_a_share_of_the_teachers_layers(ml100k, cost):
    supernet, teacher = limited(ml100k, cost_budget=0.3, cost=cost)
    with torch.no_grad():  # the search prefers what is expensive
        supernet.alpha[..., supernet.operations.index("sep_conv_5")] = 5.0
    shapes = [Shape(64, 2), Shape(16, 2), Shape(24, 1)]
    candidates = supernet.candidates(shapes, 3, 1.0, torch.Generator().manual_seed(0))
    assert len(candidates) == len(set(candidates)) == 9 and candidates[0] == supernet.derive()
    assert [architecture.hidden_size for architecture in candidates] == [64] * 3 + [16] * 3 + [24] * 3
    assert [architecture.repeats for architecture in candidates] == [2] * 6 + [1] * 3
    limit = supernet.limits[0].amount
    assert cost == "latency" or limit == pytest.approx(0.3 * layers_cost(teacher, cost))
    assert cost != "params" or limit == pytest.approx(0.3 * count_parameters(teacher)["layers"])
    for architecture in candidates:
        student = get_model("AdaRecStudent")(
            make_config("student", architecture=architecture.to_dict()), ml100k.train._dataset
        )
        assert architecture_cost(architecture, cost) <= limit * (1 + 1e-6)
        if cost == "params":
            assert count_parameters(student)["layers"] <= limit


@pytest.mark.parametrize(
    ("budget", "kinds"),
    [
        (0.25, ["bytes"]),
        ({"parameters": 0.4, "macs": 0.1}, ["params", "macs"]),
        ({"bytes": 90_000, "macs": 3_000_000, "latency": 1e6}, ["bytes", "macs"]),
    ],
)
def test_every_candidate_is_within_the_budget_of_the_whole_student(ml100k, budget, kinds):
    supernet, teacher = limited(ml100k, budget=budget, search_hidden_size=32)
    with torch.no_grad():
        supernet.alpha[..., supernet.operations.index("sep_conv_5")] = 5.0
    shapes = [Shape(32, 1), Shape(32, 2), Shape(48, 1), Shape(1024, 1)]
    candidates = supernet.candidates(shapes, 3, 1.0, torch.Generator().manual_seed(0))
    assert {candidate.repeats for candidate in candidates} == {1, 2}
    assert {candidate.hidden_size for candidate in candidates} <= {32, 48}
    for architecture in candidates:
        config = make_config("student", architecture=architecture.to_dict())
        student = get_model("AdaRecStudent")(config, ml100k.train._dataset)
        shares = [budget] if isinstance(budget, float) else budget.values()
        for limit, share, kind in zip(supernet.limits, shares, kinds, strict=False):  # a latency is not measured twice
            if share <= 1:
                assert limit.amount == pytest.approx(share * model_cost(teacher, limit.cost))
            elif limit.cost == "macs":
                assert limit.amount == share / 50
            assert limit.cost == kind and model_cost(student, kind, limit.stored) <= limit.amount


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            {"byte": 0.1},
            "budget: unknown kind 'byte'; the nearest is 'bytes'; known are bytes, parameters, macs, latency",
        ),
        (
            {"bytes": "small"},
            "budget: bytes is 'small', expected a share of the teacher's up to 1, or an amount above 1",
        ),
        ({"macs": 0}, "budget: macs is 0"),
        (0.001, "budget: 0.001 of the teacher's bytes: no student costs so little"),
        ({"macs": 60}, "budget: macs 60: no student costs so little"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(ml100k, budget, message):
    with pytest.raises(AdaRecError, match=message):
        limited(ml100k, budget=budget)


def test_budgets_that_no_shape_meets_together_are_refused(ml100k):
    message = (
        r"budget: bytes 150000 and budget: parameters 50000: no student of the candidate_sizes \[32, 64\] costs so"
    )
    small = {"search_hidden_size": 16, "budget": {"bytes": 150_000, "parameters": 90_000}}
    assert limited(ml100k, **small, candidate_sizes=[32])[0].candidates([Shape(32, 1)], 1, 1.0, torch.Generator())
    with pytest.raises(AdaRecError, match=message):
        limited(ml100k, **small | {"budget": {"bytes": 150_000, "parameters": 50_000}}, candidate_sizes=[32, 64])
    with pytest.raises(AdaRecError, match="budget: it counts a full item table, and item_table is adaptive"):
        limited(ml100k, **small, item_table="adaptive")


@pytest.mark.parametrize("cost", ["params", "latency"])
def test_measuring_costs_does_not_change_the_random_numbers(ml100k, cost):
    operation_cost.cache_clear()
    states = []
    for _ in range(2):  # the second time all costs are cached
        torch.manual_seed(3)
        limited(ml100k, cost_budget=0.3, cost=cost)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_a_budget_below_the_cheapest_student_is_refused(ml100k):
    with pytest.raises(
        AdaRecError, match="cost_budget: 0.0001 of the teacher's layers .params.: no student costs so little"
    ):
        limited(ml100k, cost_budget=0.0001)


def test_sizes_without_a_student_within_the_budget_are_skipped(ml100k):
    supernet, _ = limited(ml100k, cost_budget=0.01, search_hidden_size=16)
    candidates = supernet.candidates([Shape(16, 1), Shape(4096, 1)], 1, 1.0, torch.Generator().manual_seed(0))
    assert [architecture.hidden_size for architecture in candidates] == [16]
    with pytest.raises(AdaRecError, match=r"no student of the candidate_sizes \[4096\] costs so little"):
        limited(ml100k, cost_budget=0.01, search_hidden_size=16, candidate_sizes=[4096])


def test_a_budget_without_a_teacher_is_refused(tiny):
    config = make_config("search", "tiny", data_path=str(tiny))
    with pytest.raises(AdaRecError, match="cost_budget: .* no teacher_path"):
        build(config, load_data(config))


def test_cost_is_a_share_of_the_most_expensive_architecture(ml100k):
    for cost in ("params", "macs"):
        model = get_model("AdaRecSupernet")(make_config("search", cost=cost), ml100k.train._dataset)
        gates = torch.zeros_like(model.alpha)
        gates[..., max(range(len(model.operations)), key=model.operation_costs.tolist().__getitem__)] = 1
        assert float(model.cost(gates)) == pytest.approx(1)
        gates.zero_()[..., model.operations.index("none")] = 1
        assert float(model.cost(gates)) == pytest.approx(model.cell_costs)


def test_too_few_users_to_split_is_refused(tmp_path):
    folder = write_dataset(tmp_path, "lonely", [[1, 2, 3, 4, 5, 6]])
    with pytest.raises(AdaRecError, match="1 users cannot be split by 0.5"):
        run_adarec("lonely", config_dict={"data_path": str(folder)}, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_alpha_moved_is_a_total_variation_distance(ml100k):
    model = get_model("AdaRecSupernet")(make_config("search"), ml100k.train._dataset)
    assert model.alpha_statistics()["alpha_moved"] == 0
    with torch.no_grad():
        model.alpha[..., 0] = 50.0
    assert math.isclose(model.alpha_statistics()["alpha_moved"], 1 - 1 / len(model.operations), abs_tol=1e-3)


def test_more_alpha_steps_are_shorter_and_the_weight_of_cost_grows(tiny, monkeypatch):
    monkeypatch.setattr("recbole_adarec.trainer.search._FULL_RATE_STEPS", 5)
    config = make_config(
        "search", "tiny", data_path=str(tiny), search_epochs=3, alpha_warmup=0.34, train_batch_size=60,
        cost_budget=None, alpha_learning_rate=0.1, beta=2.0,
    )  # fmt: skip
    data = load_data(config)
    trainer, _ = build(config, data)
    step, seen = trainer._alpha_step, []

    def watch(batch):
        seen.append((trainer.alpha_optimizer.param_groups[0]["lr"], trainer.beta))
        return step(batch)

    trainer._alpha_step = watch
    trainer.fit(data.train, saved=False, verbose=False)
    assert len(seen) > 5 and all(rate == pytest.approx(0.5 / len(seen)) for rate, _ in seen)
    betas = [beta for _, beta in seen]
    assert betas == sorted(betas) and betas[0] == pytest.approx(2 * 2 / len(seen)) and betas[-1] == 2


def test_operations_that_no_student_can_afford_are_never_drawn(ml100k):
    convolutions = ["conv_3", "conv_5", "dilated_conv_3", "dilated_conv_5"]
    supernet, _ = limited(ml100k, cost_budget=0.03, operations=[*convolutions, "sep_conv_3", "skip", "none"])
    expensive = supernet.beyond_budget()
    assert expensive == convolutions
    with torch.no_grad():
        supernet.alpha[..., 0] = 50.0
    for seed in range(20):
        drawn = {supernet.operations[o] for cell in supernet.sample(1.0).choice for o in cell}
        assert not drawn & set(expensive), seed
    assert not {name for cell in supernet.derive().cells for name in cell} & set(expensive)


def test_the_log_names_operations_that_no_student_can_afford(tiny, monkeypatch, caplog):
    teacher_config = make_config("teacher", "tiny", data_path=str(tiny))
    data = load_data(teacher_config)
    teacher = get_model("AdaRecTeacher")(teacher_config, data.train._dataset)
    monkeypatch.setattr("recbole_adarec.trainer.search.AdaRecSupernetTrainer._load_teacher", lambda *_: teacher)
    for budget, logged in ((0.02, True), (0.9, False)):
        config = make_config(
            "search", "tiny", data_path=str(tiny), gamma=0.0, teacher_path="elsewhere", cost_budget=budget,
            operations=["conv_5", "skip", "none"], hidden_size=64,
        )  # fmt: skip
        supernet = get_model(config["model"])(config, data.train._dataset)
        get_trainer(config["MODEL_TYPE"], config["model"])(config, supernet)
        assert ("no student has any: conv_5;" in caplog.text) == logged
        caplog.clear()


def test_the_published_settings_are_one_file_away():
    values = resolve_user_config(None, ["published.yaml"], {})
    search, student = stage_config(values, "search"), stage_config(values, "student")
    assert search["bilevel"] is False and search["layer_weight_floor"] == 0 and search["candidate_sizes"] is None
    assert search["alpha_learning_rate"] == 2e-5 and search["gamma"] == 0.5 and student["gamma"] == 0
