"""Layer transport, layer weights and losses against their definitions."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import patch

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from recbole_adarec import AdaRecError
from recbole_adarec.distillation.distiller import Distiller
from recbole_adarec.distillation.layer_mapping import (
    DISTANCES,
    EMDMapping,
    FixedMapping,
    attend_to_cost,
    fixed_pairs,
    optimal_flow,
)
from recbole_adarec.distillation.teacher_outputs import CachedTeacher, LiveTeacher
from recbole_adarec.losses.full_softmax import SoftmaxLoss
from recbole_adarec.losses.item_loss import LossWeights, OutputTargets
from recbole_adarec.losses.sampling import Candidates, Sampler
from recbole_adarec.losses.softmax import Logits, softmax_losses
from recbole_adarec.model.base import Encoding
from recbole_adarec.model.item_table.base import append_ones
from recbole_adarec.model.item_table.full import FullItemTable
from recbole_adarec.model.seen_items import SeenItems, deduplicated, seen_up_to
from tests.helpers import make_config, with_random_weights
from tests.model.test_causality import teacher


def layer_weights(n):
    return torch.rand(n).add(0.1).div(1).softmax(0)


@pytest.mark.parametrize(("s", "t"), [(4, 8), (1, 3), (5, 2)])
def test_flow_has_the_layer_weights_as_marginals_and_the_loss_of_emd2(s, t):
    for _ in range(20):
        u, v, distances = layer_weights(s), layer_weights(t), torch.rand(s, t)
        flow = optimal_flow(u, v, distances)
        torch.testing.assert_close(flow.sum(1), u, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(flow.sum(0), v, rtol=1e-5, atol=1e-6)
        u64, v64 = u.double() / u.double().sum(), v.double() / v.double().sum()
        expected = ot.emd2(u64.numpy(), v64.numpy(), distances.double().numpy())
        assert float((flow * distances).sum()) == pytest.approx(expected, rel=1e-4)


def test_the_flow_is_a_constant_for_the_gradient():
    mapping, distances = EMDMapping(3, 4, 0.5, 0.9), torch.rand(3, 4, requires_grad=True)
    mapping(distances).backward()
    torch.testing.assert_close(distances.grad, mapping.flow)


def test_distances_equal_their_definition_pair_by_pair():
    student, teacher_layers = torch.randn(3, 50, 8), torch.randn(5, 50, 8)
    kl, mse = DISTANCES["kl"](student, teacher_layers), DISTANCES["mse"](student, teacher_layers)
    for i in range(3):
        for j in range(5):
            expected = F.kl_div(
                student[i].log_softmax(-1), teacher_layers[j].log_softmax(-1), log_target=True, reduction="batchmean"
            )
            torch.testing.assert_close(kl[i, j], expected)
            torch.testing.assert_close(mse[i, j], F.mse_loss(student[i], teacher_layers[j]))


def test_cost_attention_is_bert_emds_without_a_floor_and_bounded_with_one():
    cost = torch.tensor([0.2, 0.1, 0.4])
    torch.testing.assert_close(attend_to_cost(cost, 0.0), (cost.sum() / cost / 10).softmax(0))
    extreme = torch.tensor([1e-6, 1.0, 1.0, 1.0])
    assert attend_to_cost(extreme, 0.0).max() > 0.999  # the published collapse
    bounded = attend_to_cost(extreme, 0.5)
    assert bounded.min() >= 0.5 / 4 and bounded.sum() == pytest.approx(1)


def test_weights_follow_the_costs_of_their_own_flow():
    """A layer that is cheap to reach gains; u moves with rows, v with columns (the published code mixes them up)."""
    mapping = EMDMapping(2, 3, floor=0.1, momentum=0.5)
    distances = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.5, 0.9]])
    for _ in range(30):
        mapping(distances)
        mapping.update(distances)
    v, u = mapping.teacher_weights, mapping.student_weights
    assert v[0] > v[1] > v[2] >= 0.1 / 3
    assert u.sum() == pytest.approx(1) and v.sum() == pytest.approx(1)
    flow, v_cost = mapping.flow, (mapping.flow * distances).sum(0)
    assert flow.shape == (2, 3) and bool((v_cost >= 0).all())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("left", [0, 1, 2, 3]), ("right", [4, 5, 6, 7]), ("left_jump", [0, 2, 4, 6]), ("right_jump", [1, 3, 5, 7])],
)
def test_fixed_mappings(name, expected):
    assert fixed_pairs(name, 4, 8, seed=0) == expected
    mapping, distances = FixedMapping(expected, 8), torch.rand(4, 8)
    assert float(mapping(distances)) == pytest.approx(float(distances[range(4), expected].mean()))


def test_random_mapping_is_ordered_distinct_and_seeded():
    pairs = fixed_pairs("random", 4, 8, seed=5)
    assert pairs == sorted(set(pairs)) and len(pairs) == 4 and pairs == fixed_pairs("random", 4, 8, seed=5)
    assert len({tuple(fixed_pairs("random", 4, 8, seed=s)) for s in range(10)}) > 3


@settings(derandomize=True, deadline=None)
@given(
    name=st.sampled_from(["left", "right", "left_jump", "right_jump", "random"]),
    s=st.integers(1, 12),
    t=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_one_to_one_mappings_give_every_student_layer_a_teacher_layer_in_order(name, s, t, seed):
    pairs = fixed_pairs(name, s, t, seed)
    assert len(pairs) == s and min(pairs) >= 0 and max(pairs) < t and pairs == sorted(pairs)
    if s <= t:
        assert len(set(pairs)) == s, "none teaches twice"
    flow = FixedMapping(pairs, t).flow
    torch.testing.assert_close(flow.sum(1), torch.full((s,), 1 / s))


def dense_losses(states, table, labels, teacher_states, teacher_table, t, seen=None, teacher_bias=0.0):
    """Losses over all items from the matrix of all scores, by torch's functions."""
    logits, teacher_logits = states @ table.T, teacher_states @ teacher_table.T
    if seen is not None:
        mask = torch.zeros_like(logits).scatter_(1, seen.items, 1.0).index_fill_(1, torch.tensor([0]), 0.0)
        logits, teacher_logits = logits + seen.bias * mask, teacher_logits + teacher_bias * mask
    kl = t**2 * F.kl_div(
        (logits / t).log_softmax(-1), (teacher_logits / t).log_softmax(-1), log_target=True, reduction="batchmean"
    )
    return F.cross_entropy(logits, labels), kl


@pytest.mark.parametrize("way", ["chunks", "one chunk", "every item a candidate"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 2.5])
@pytest.mark.parametrize("positions", [7, 600])
@pytest.mark.parametrize("biases", [None, (-3.0, -1.0), (2.0, 0.0)])
def test_item_losses_and_gradients_equal_a_dense_computation(way, temperature, positions, biases):
    """Sampled ones too where every item is drawn with weight 1: the target is then counted once, not twice."""
    n, size = 40, 8
    states, table = torch.randn(positions, size, requires_grad=True), torch.randn(n, size, requires_grad=True)
    labels, teacher_states, teacher_table = (
        torch.randint(1, n, (positions,)),
        torch.randn(positions, 16),
        torch.randn(n, 16),
    )
    seen, teacher_bias = None, 0.0
    if biases is not None:
        seen, teacher_bias = SeenItems(deduplicated(torch.randint(n, (positions, 5))), biases[0]), biases[1]
    weights, teacher = LossWeights(0.3, 0.7, temperature), OutputTargets(teacher_states, teacher_table, teacher_bias)
    if way == "every item a candidate":
        loss = SoftmaxLoss(make_config("student", item_loss="sampled"), n, torch.device("cpu"))
        loss.sampler = SimpleNamespace(draw=lambda _: Candidates(torch.arange(n), torch.zeros(n)))
        rows = SimpleNamespace(rows=lambda items: table[items], n_items=n)
        # Without the channel of ones that `append_ones` adds.
        with patch("recbole_adarec.losses.full_softmax.append_ones", lambda x: x):
            total, ce, kl = loss(states, rows, labels, weights, teacher, seen)
    else:
        rows = positions if way == "one chunk" else 64
        targets = Logits(teacher_states, teacher_table, labels, teacher.seen(seen))
        total, ce, kl = softmax_losses(Logits(states, table, labels, seen), weights, targets, rows)
    (2 * total).backward()
    gradients = states.grad.clone(), table.grad.clone()
    states.grad = table.grad = None
    expected_ce, expected_kl = dense_losses(
        states, table, labels, teacher_states, teacher_table, temperature, seen, teacher_bias
    )
    (2 * (0.3 * expected_ce + 0.7 * expected_kl)).backward()
    torch.testing.assert_close(ce, expected_ce.detach())
    torch.testing.assert_close(kl, expected_kl.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients, (states.grad, table.grad), rtol=1e-4, atol=1e-6)


def test_an_item_that_was_drawn_twice_has_both_of_its_columns():
    drawn = Candidates(torch.tensor([3, 5, 5, 7]), torch.zeros(4))
    columns = drawn.columns(torch.tensor([[5, 0, 7, 4]]), 9)
    assert sorted(columns[columns > 0].tolist()) == [2, 3, 4]


def test_seen_items_are_those_of_the_window_up_to_a_position_each_once(ml100k):
    batch = ml100k.train._dataset[torch.arange(0, 60, 7)]
    item_seq = batch["item_id_list"].clone()
    item_seq[:, 3] = item_seq[:, 1]  # an item that occurs twice
    rows = (batch["target_item_id_list"] != 0).flatten().nonzero().squeeze(1)
    for row, seen in zip(rows.tolist(), seen_up_to(item_seq, rows), strict=True):
        window, position = divmod(row, item_seq.shape[1])
        items = seen[seen != 0].tolist()
        assert len(items) == len(set(items)) and set(items) == set(item_seq[window, : position + 1].tolist())


def test_scores_far_apart_do_not_overflow():
    states = torch.full((3, 1), 300.0, requires_grad=True)
    total, ce, _ = softmax_losses(Logits(states, torch.tensor([[-1.0], [1.0], [0.5]]), torch.tensor([0, 1, 2])))
    total.backward()
    assert float(ce) == pytest.approx((600 + 0 + 150) / 3) and bool(states.grad.isfinite().all())


@pytest.mark.parametrize("number", [5, 8, 40])
def test_sampled_partition_functions_are_unbiased(number):
    """The mean over draws of the estimated partition function is the true one, for a popular and for a rare target."""
    counts = torch.tensor([0, 1000, 300, 100, 30, 10, 3, 1, 0, 0])
    sampler, table = Sampler(counts, number, seed=0), torch.randn(10, 4)
    states, labels = torch.randn(2, 4), torch.tensor([1, 8])
    estimates = []
    for _ in range(4000):
        drawn = sampler.draw(torch.device("cpu"))
        for i in range(2):
            state, label = states[i : i + 1], labels[i : i + 1]
            target_row = table[label]
            _, ce, _ = softmax_losses(Logits(state, table[drawn.items], label, candidates=drawn, positives=target_row))
            estimates.append((ce + states[i] @ target_row[0]).exp())
    expected = (states @ table[1:].T).exp().sum(1)
    torch.testing.assert_close(torch.stack(estimates).view(-1, 2).mean(0), expected, rtol=0.05, atol=0)


def test_padding_is_never_a_negative():
    for number in (1, 2, 500):
        drawn = Sampler(torch.tensor([1000, 1, 1, 0, 0]), number, seed=0).draw(torch.device("cpu"))
        assert len(drawn.items) <= number and 0 not in drawn.items and bool(drawn.log_weight.isfinite().all())


def test_sampling_without_counts_is_refused():
    loss = SoftmaxLoss(make_config("student", item_loss="sampled"), 10, torch.device("cpu"))
    with pytest.raises(AdaRecError, match=r"item_loss sampled: .* call prepare\(counts\)"):
        loss(torch.randn(3, 4), FullItemTable(10, 4), torch.tensor([1, 2, 3]))


def distiller(config, teacher_table):
    return Distiller(config, 32, 4, [(8, teacher_table.shape[1] - 1)], teacher_table)


def test_a_student_that_knows_its_teachers_table_starts_at_the_best_approximation():
    teacher_table, table = torch.randn(200, 64), FullItemTable(200, 32)
    d = distiller(make_config("student"), F.pad(teacher_table, (0, 1), value=3.0))  # priors stand last
    d.start_from_teacher(table)
    rebuilt = d.project_embedding(table.items)
    best = torch.linalg.svdvals(teacher_table)[32:].square().sum()
    assert float((rebuilt - teacher_table).square().sum()) == pytest.approx(float(best), rel=1e-3)


@pytest.mark.parametrize("switch", ["loss_embedding", "loss_hidden", "loss_output"])
def test_each_switch_leaves_out_its_loss_alone(ml100k, switch):
    model = teacher_of(ml100k)
    batch = ml100k.train._dataset[torch.arange(4)]
    teacher_targets = LiveTeacher(model, DISTANCES["kl"]).targets_of(batch)
    b, length = batch["item_id_list"].shape
    encoding = Encoding(
        torch.randn(b, length, 32), tuple(torch.randn(b, length, 32) for _ in range(4)), torch.randn(b, length, 32)
    )
    table = FullItemTable(model.n_items, 32)
    parts = {}
    for config in (make_config("student"), make_config("student", **{switch: False})):
        torch.manual_seed(0)
        d = distiller(config, model.item_table.matrix)
        item_loss = SoftmaxLoss(config, model.n_items, torch.device("cpu"))
        losses = d(encoding, batch["item_id_list"], batch["target_item_id_list"], table, teacher_targets, item_loss)
        parts[config[switch]] = losses.parts
    name = switch.removeprefix("loss_")
    assert float(parts[True][name]) > 0 and float(parts[False].get(name, torch.zeros(()))) == 0
    for other in set(parts[True]) - {name}:
        torch.testing.assert_close(parts[True][other], parts[False][other])


def teacher_of(ml100k, backbone="NextItNet"):
    from recbole.utils import get_model

    config = make_config("teacher", backbone=backbone, teacher_hidden_size=16, teacher_inner_size=16)
    return with_random_weights(get_model("AdaRecTeacher")(config, ml100k.train._dataset))


@pytest.mark.parametrize("backbone", ["NextItNet", "BERT4Rec"])
def test_cached_teacher_outputs_equal_live_ones(ml100k, backbone):
    model, dataset = teacher_of(ml100k, backbone), ml100k.train._dataset
    model.repeat_bias.fill_(-2.0)
    few = torch.arange(0, len(dataset), 29)

    class Part(type(dataset)):
        """The first windows only, to keep the test short."""

        def __len__(self):
            return 200

    part = object.__new__(Part)
    part.__dict__.update(dataset.__dict__)
    live = LiveTeacher(model, DISTANCES["kl"])
    cached = CachedTeacher(live, part, temperature=2.0)
    batch = dataset[few[few < 200].flip(0)]
    expected, targets = live.targets_of(batch), cached.targets_of(batch)
    assert torch.equal(expected.rows, targets.rows) and expected.every_position == targets.every_position
    for x, y in zip(expected[2:-1], targets[2:-1], strict=True):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-3)

    states = torch.randn(len(expected.rows), 8, requires_grad=True)
    table, labels = torch.randn(model.n_items, 8), batch["target_item_id_list"].flatten()[expected.rows]
    results = []
    seen = SeenItems(seen_up_to(batch["item_id_list"], expected.rows), -3.0)
    student = Logits(states, table, labels, seen)
    live_softmax = Logits(append_ones(expected.output), model.item_table.matrix, labels, seen._replace(bias=-2.0))
    for softmax in (live_softmax, targets.softmax):
        total, *parts = softmax_losses(student, LossWeights(0.3, 0.7, 2.0), softmax, rows=16)
        results.append((*parts, *torch.autograd.grad(total, [states])))
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-5)


def test_a_bidirectional_teacher_teaches_only_where_it_sees_no_future(ml100k):
    model = teacher(ml100k, "BERT4Rec")
    batch = ml100k.train._dataset[torch.arange(5)]
    teacher_targets = LiveTeacher(model, DISTANCES["kl"]).targets_of(batch)
    assert not teacher_targets.every_position and len(teacher_targets.rows) < (batch["item_id_list"] != 0).sum()
    assert len(teacher_targets.output) == len(teacher_targets.rows)
