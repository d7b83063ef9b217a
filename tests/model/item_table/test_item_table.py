"""Both item tables do what the interface says; the losses of the block-wise one equal a dense computation of them."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.utils import get_model, get_trainer
from torch.nn import functional as F

from recbole_adarec import AdaRecError
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.data.dataset import item_counts
from recbole_adarec.evaluation.per_user import user_scores
from recbole_adarec.losses.adaptive_softmax import AdaptiveSoftmaxLoss, adaptive_softmax_losses, block_scores
from recbole_adarec.losses.item_loss import LossWeights, OutputTargets
from recbole_adarec.model.item_table.adaptive import AdaptiveItemTable
from recbole_adarec.model.item_table.base import append_ones, best_items
from recbole_adarec.model.item_table.budget import Blocks, cut_blocks, table_parameters
from recbole_adarec.model.item_table.build import build_item_table, popularity_prior
from recbole_adarec.model.item_table.full import FullItemTable
from recbole_adarec.model.item_table.quantization import code_parameters, quantize
from recbole_adarec.model.seen_items import SeenItems, deduplicated
from tests.helpers import make_config

ITEMS, SIZE = 40, 8
CUT = Blocks((5, 9, 25), (8, 3, 1))


def prior_of(items=ITEMS):
    return F.pad(torch.randn(items - 1), (1, 0))


def adaptive(tied=True, cut=CUT, items=ITEMS, size=SIZE, prior=True):
    prior = prior_of(items) if prior else None
    table = AdaptiveItemTable(items, size, cut, torch.rand(items), tied, prior=prior, served=0.75)
    with torch.no_grad():
        for parameter in table.parameters():
            parameter.normal_()
    return table.double()


TABLES = {
    "full": lambda: FullItemTable(ITEMS, SIZE, std=1.0, prior=prior_of(), served=0.75).double(),
    "normalized": lambda: FullItemTable(ITEMS, SIZE, std=1.0, prior=prior_of(), served=0.75, normalized=True).double(),
    "tied": adaptive,
    "untied": lambda: adaptive(tied=False),
    "no wide head": lambda: adaptive(cut=Blocks((5, 34), (3, 2))),
}


@pytest.fixture(params=TABLES)
def table(request):
    return TABLES[request.param]()


def states(n=6):
    return torch.randn(n, SIZE, dtype=torch.double, requires_grad=True)


def some_seen(n=6, bias=-2.0):
    return None if bias is None else SeenItems(deduplicated(torch.randint(0, ITEMS, (n, 9))), bias)


@pytest.mark.parametrize("bias", [None, -2.0, 1.0])
def test_probabilities_sum_to_one_over_items_and_padding_has_none(table, bias):
    h, items, seen = states(), torch.arange(1, ITEMS), some_seen(bias=bias)
    log_p = torch.stack([table.log_probability(h, item.expand(len(h)), seen) for item in items], 1)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(len(h), dtype=torch.double))
    order = table.top_k(h, ITEMS - 1, seen).items
    assert torch.equal(order.sort(1).values, items.expand_as(order))  # every item is reachable, padding is not
    assert not table(torch.zeros(3, dtype=torch.long)).any()


@pytest.mark.parametrize("bias", [None, -2.0, 1.0])
def test_scores_of_candidates_are_those_of_all_items(table, bias):
    h, items, seen = states(), torch.randint(1, ITEMS, (6, 7)), some_seen(bias=bias)
    scores = table.scores(h, seen)
    torch.testing.assert_close(table.scores_of(h, items, seen), scores.gather(1, items))
    log_p = F.log_softmax(scores[:, 1:] + 0.25 * table.prior[1:], 1)  # scores have 0.75 of the prior
    single = table.log_probability(h, items[:, 0], seen)
    torch.testing.assert_close(single, log_p.gather(1, items[:, :1] - 1).squeeze(1))


def test_seen_items_have_the_bias_against_the_others_of_their_softmax(table):
    h, seen = states(), some_seen()
    before, after = table.scores(h), table.scores(h, seen)
    for block in range(table.tail_blocks + 1):
        ids = table.ids(block)
        bias = torch.zeros_like(before).scatter_(1, seen.items, seen.bias)[:, ids]
        change = (after - before)[:, ids] - bias
        torch.testing.assert_close(change, change[:, :1].expand_as(change))
        columns = table.seen_in_block(seen, block).add_to(torch.zeros(len(h), len(ids), dtype=torch.double))
        torch.testing.assert_close(columns, bias)


def test_normalized_rows_score_with_one_length_that_is_learned():
    table, h = TABLES["normalized"](), states()
    items = torch.randint(1, ITEMS, (6,))
    assert torch.equal(table.rows(items), table.matrix[items])
    torch.testing.assert_close(table.items[1:].norm(dim=1), table.log_length.exp().expand(ITEMS - 1))
    scores = table.scores(h)
    with torch.no_grad():
        table.embedding.weight *= torch.rand(ITEMS, 1) + 0.5
    torch.testing.assert_close(table.scores(h), scores)
    table.log_probability(h, items).sum().backward()
    assert table.log_length.grad != 0


def test_embeddings_keep_their_shape_and_gradients(table):
    items = torch.randint(0, ITEMS, (4, 5))
    embedded = table(items)
    assert embedded.shape == (4, 5, SIZE)
    for row, item in zip(embedded.flatten(0, 1), items.flatten(), strict=True):
        torch.testing.assert_close(row, table(item[None])[0])
    embedded.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in table.embeddings()[:1])


def test_scores_are_those_of_torchs_adaptive_softmax():
    """The same function with the same weights, items in order of popularity."""
    table, h = adaptive(prior=False), states()
    cut = table.starts[1:-1]
    torchs = torch.nn.AdaptiveLogSoftmaxWithLoss(SIZE, ITEMS - 1, cut, 8 / 3, head_bias=True).double()
    with torch.no_grad():
        torchs.head.weight.copy_(torch.cat([table.blocks[0].embedding.weight, table.entries.weight]))
        torchs.head.bias.copy_(F.pad(table.entries.bias, (CUT.sizes[0], 0)))
        for tail, block in zip(torchs.tail, table.blocks[1:], strict=True):
            tail[0].weight.copy_(block.projection.weight.T)
            tail[1].weight.copy_(block.embedding.weight)
    torch.testing.assert_close(table.scores(h)[:, table.by_popularity.long()], torchs.log_prob(h))


# ---------------------------------------------------------------------- losses


def dense(h, table, labels, teacher, t, seen):
    """Both losses from the logits of all blocks, by torch's functions."""
    ce = -table.log_probability(h, labels, seen).mean()
    z, mask = append_ones(teacher.states) @ teacher.table.T, torch.zeros(len(h), ITEMS, dtype=torch.double)
    bias = 0.0
    if seen is not None:
        mask.scatter_(1, seen.items, 1.0)
        z, bias = z + teacher.bias * mask, seen.bias
    blocks = [z[:, table.ids(j)] for j in range(len(table.blocks))]
    first = torch.cat([blocks[0], *(block.logsumexp(1, keepdim=True) for block in blocks[1:])], 1)

    def kl(teacher, student):
        p = (teacher / t).log_softmax(1)
        return (p.exp() * (p - (student / t).log_softmax(1))).sum(1)

    total = kl(first, table.first_level(h, seen))
    for j in range(1, len(table.blocks)):
        within = kl(blocks[j], table.scored_blocks[j].logits(h) + bias * mask[:, table.ids(j)])
        total = total + torch.isin(labels, table.ids(j)) * within
    return ce, t * t * total.mean()


@pytest.mark.parametrize("name", ["tied", "untied", "no wide head"])
@pytest.mark.parametrize("t", [1.0, 2.0, 1.7])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("biases", [(None, 0.0), (-3.0, -1.0), (1.0, 0.0)])
def test_losses_and_gradients_equal_a_dense_computation(name, t, cached, biases):
    seen = some_seen(50, biases[0])
    table, h, labels = TABLES[name](), states(50), torch.randint(1, ITEMS, (50,))
    teacher = OutputTargets(torch.randn(50, 6).double(), torch.randn(ITEMS, 7).double(), biases[1])
    if cached:
        blocks = block_scores(teacher.states, teacher.table, table, teacher.seen(seen))
        teacher = replace(teacher, softmax=blocks)
    total, ce, kl = adaptive_softmax_losses(h, table, labels, LossWeights(0.3, 0.7, t), teacher, seen, rows=16)
    expected_ce, expected_kl = dense(h, table, labels, teacher, t, seen)
    torch.testing.assert_close((ce, kl), (expected_ce.detach(), expected_kl.detach()))
    trained = [h, *(p for n, p in table.named_parameters() if not (n.startswith("blocks") and not table.tied))]
    gradients = torch.autograd.grad(total, trained)
    expected = torch.autograd.grad(0.3 * expected_ce + 0.7 * expected_kl, trained)
    torch.testing.assert_close(gradients, expected)


def test_output_distillation_has_the_divergence_over_all_items_as_its_mean():
    """Over targets drawn from the teacher, at temperature 1: the chain rule of relative entropy."""
    table, h = adaptive(), states(1)
    teacher = OutputTargets(torch.randn(1, 6).double(), torch.randn(ITEMS, 7).double())
    z = append_ones(teacher.states) @ teacher.table[1:].T
    p = z.log_softmax(1).squeeze(0)
    every, weights = torch.arange(1, ITEMS), LossWeights(kl=1.0)
    losses = torch.stack([adaptive_softmax_losses(h, table, y[None], weights, teacher).kl for y in every])
    expected = (p.exp() * (p - table.log_probability(h.expand(len(every), -1), every))).sum()
    torch.testing.assert_close((p.exp() * losses).sum(), expected.detach())


@pytest.mark.parametrize("t", [1.0, 3.0])
def test_output_distillation_is_zero_where_the_students_softmax_is_the_teachers(t):
    """Whatever the temperature: the entry of a block is the sum over the teacher's items."""
    table, h = adaptive(cut=Blocks((5, 34), (SIZE, SIZE)), size=SIZE), states(1)
    teacher_table = torch.zeros(ITEMS, SIZE + 1, dtype=torch.double)
    with torch.no_grad():
        for j in range(2):
            teacher_table[table.ids(j)] = table.blocks[j].matrix
        table.entries.weight.zero_()
        table.entries.bias.copy_(table.blocks[1].logits(h).logsumexp(1))
    for label in (table.ids(0)[:1], table.ids(1)[:1]):
        teacher = OutputTargets(h.detach(), teacher_table)
        losses = adaptive_softmax_losses(h, table, label, LossWeights(kl=1.0, temperature=t), teacher)
        assert abs(float(losses.kl)) < 1e-12


def test_blocks_without_targets_are_not_computed(monkeypatch):
    table, h = adaptive(), states(20)
    labels = table.ids(1)[torch.randint(9, (20,))]
    total, _, _ = adaptive_softmax_losses(h, table, labels)
    total.backward()
    assert table.blocks[2].embedding.weight.grad is None and table.blocks[1].embedding.weight.grad.any()


def test_sampling_is_refused():
    with pytest.raises(AdaRecError, match="item_loss sampled: for full tables alone"):
        AdaptiveSoftmaxLoss(make_config("student", item_loss="sampled"), adaptive(), torch.device("cpu"))


# ---------------------------------------------------------------------- top-k


def by_sorting(table, h, k):
    scores = table.scores(h)
    order = [sorted(range(1, table.n_items), key=lambda i, row=row: (-row[i], i))[:k] for row in scores.tolist()]
    return torch.tensor(order), scores.gather(1, torch.tensor(order))


few = st.integers(-3, 3).map(float)  # many equal scores


@settings(derandomize=True, deadline=None)
@given(scores=st.lists(few, min_size=1, max_size=30), k=st.integers(1, 40), data=st.data())
def test_the_best_items_are_those_of_sorting(scores, k, data):
    ids = data.draw(st.permutations(range(1, len(scores) + 1)))
    items, best = best_items(torch.tensor(scores), torch.tensor(ids), k)
    expected = sorted(zip(scores, ids, strict=True), key=lambda pair: (-pair[0], pair[1]))[:k]
    assert list(zip(best.tolist(), items.tolist(), strict=True)) == expected


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    blocks=st.lists(st.tuples(st.integers(1, 40), st.integers(1, SIZE)), min_size=2, max_size=5),
    levels=st.sampled_from([1, 2]),
    tied=st.booleans(),
    scale=st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    rounded=st.booleans(),
    lower=st.integers(0, 12),
    seed=st.integers(0, 2**31),
    share=st.floats(0, 1),
)
def test_the_best_k_are_those_of_full_scoring(blocks, levels, tied, scale, rounded, lower, seed, share):
    """Any cut, scale, popularity of the tail and k; rounded weights give many equal scores."""
    torch.manual_seed(seed)
    sizes, widths = zip(*blocks, strict=True)
    if levels == 1:
        table = FullItemTable(sum(sizes) + 1, SIZE, std=1.0, prior=prior_of(sum(sizes) + 1), served=0.75).double()
    else:
        table = adaptive(tied, Blocks(sizes, widths), sum(sizes) + 1)
        table.entries.bias.data -= lower
    h = torch.randn(4, SIZE).double()
    with torch.no_grad():
        for parameter in table.parameters():
            parameter.mul_(scale)
            if rounded:
                parameter.round_()
    h = h.round() if rounded else h
    for k in {1, max(round(share * sum(sizes)), 1), sum(sizes)}:
        top, (items, scores) = table.top_k(h, k), by_sorting(table, h, k)
        assert torch.equal(top.items, items)
        torch.testing.assert_close(top.scores, scores)
        assert 0 < top.scored <= 1


def test_equal_scores_are_ordered_by_id():
    for table in (FullItemTable(ITEMS, SIZE), adaptive(prior=False)):
        with torch.no_grad():
            for parameter in table.parameters():
                parameter.zero_()
        h = torch.ones(2, SIZE, dtype=next(table.parameters()).dtype)
        assert torch.equal(table.top_k(h, 7).items, by_sorting(table, h, 7)[0])


def test_blocks_that_cannot_hold_the_best_are_not_scored_and_bounds_follow_the_weights():
    table, h = adaptive(), states(3)
    with torch.no_grad():
        table.entries.bias -= 50.0
    assert table.top_k(h, 5).scored == pytest.approx(5 / 39)
    with torch.no_grad():
        table.entries.bias += 100.0
        table.blocks[2].embedding.weight[7] = 30 * (h[0] @ table.blocks[2].projection.weight).sign()
    top = table.top_k(h, 5)
    assert top.scored > 5 / 39 and torch.equal(top.items, by_sorting(table, h, 5)[0])


# ---------------------------------------------------------------------- codes

QUANTIZED = CUT._replace(widths=(SIZE,) * 3, codes=(1, 2, 3))


def rows_of(table):
    return [weight.detach().clone() for weight in table.embeddings()]


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [3, 700])
def test_every_piece_of_a_row_is_the_nearest_of_the_codebook(rows, channels):
    table = torch.randn(rows, SIZE) * torch.rand(SIZE)
    codes = quantize(table, channels)
    assert codes.codes.dtype == torch.uint8 and codes.codes.shape == (rows, -(-SIZE // channels))
    assert sum(part.numel() for part in codes[1:]) + -(-codes.codes.numel() // 4) == code_parameters(
        rows, SIZE, channels
    )
    pieces = F.pad(table / codes.scale, (0, -SIZE % channels)).view(-1, channels)
    nearest = torch.cdist(pieces, codes.book, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    distances = (pieces - codes.book[codes.codes.flatten().int()]).norm(dim=1)
    torch.testing.assert_close(distances, nearest, atol=1e-5, rtol=1e-4)
    again = quantize(table, channels)
    assert all(torch.equal(a, b) for a, b in zip(codes, again, strict=True))
    if rows * codes.codes.shape[1] <= 256:
        torch.testing.assert_close(codes.rows(), table, msg="as many pieces as there are need not lose anything")


def test_finer_codes_lose_less():
    table = torch.randn(900, 12)
    lost = [float((quantize(table, channels).rows() - table).square().mean()) for channels in (1, 2, 3, 4, 6)]
    assert lost == sorted(lost) and lost[0] < 0.001 and lost[-1] < 1


def quantizable(kind, items=1001):
    """A table whose rows become codes, on one level or on two."""
    cut = Blocks((100, 300, 600), (SIZE,) * 3, (1, 2, 4))
    if kind != "one level":
        return adaptive(kind == "tied", cut, items).float()
    return FullItemTable(items, SIZE, std=1.0, prior=prior_of(items), served=0.75, blocks=cut, counts=torch.rand(items))


@pytest.mark.parametrize("kind", ["one level", "tied", "untied"])
def test_a_quantized_table_is_restored_from_a_smaller_state(kind):
    torch.manual_seed(1)
    table = quantizable(kind)
    before, whole, h = rows_of(table), table.parameter_count(), torch.randn(5, SIZE)
    assert table.quantize() and table.quantize(), "once more changes little"
    assert all((a - b).square().mean() < 0.2 * b.square().mean() for a, b in zip(rows_of(table), before, strict=True))
    state = table.state_dict()
    assert not [name for name in state if name.endswith("embedding.weight")]
    assert not table(torch.zeros(3, dtype=torch.long)).any(), "padding stays 0"
    stored = sum(part.numel() * part.element_size() for name, part in state.items() if ".embedding." in name)
    assert stored < 0.4 * sum(4 * rows.numel() for rows in before) and table.parameter_count() < 0.5 * whole
    other = quantizable(kind)
    other.load_state_dict(state)
    assert torch.equal(other.scores(h), table.scores(h)) and other.parameter_count() == table.parameter_count()
    assert all(torch.equal(part, state[name]) for name, part in other.state_dict().items())


@pytest.mark.parametrize("kinds", [40, 300])
@pytest.mark.parametrize("levels", [1, 2])
def test_beside_codes_priors_and_order_take_a_byte_or_two_an_item(levels, kinds):
    items, cut = 1001, Blocks((100, 300, 600), (SIZE,) * 3, (1, 2, 4))
    counts = torch.randint(0, kinds, (items,)).float()
    prior = F.pad((counts[1:] + 1).log(), (1, 0))

    def built(counts=None, prior=None):
        if levels == 1:
            return FullItemTable(items, SIZE, std=1.0, prior=prior, blocks=cut, counts=counts)
        return AdaptiveItemTable(items, SIZE, cut, counts, prior=prior)

    table = built(counts, prior)
    table.quantize()
    state = table.state_dict()
    assert "prior" not in state and not [name for name in state if "popularity" in name or "order" in name]
    assert state["prior_index"].dtype == (torch.uint8 if kinds == 40 else torch.int16)
    h = torch.randn(3, SIZE)
    other = built()
    other.load_state_dict(state)
    assert torch.equal(other.prior, prior) and torch.equal(other.scores(h), table.scores(h))
    assert other.state_dict().keys() == state.keys()
    # A file from before has both, as they are.
    old = {name: part for name, part in state.items() if not name.startswith("prior")} | {"prior": prior}
    order = counts[1:].argsort(descending=True, stable=True) + 1
    old["embedding.order" if levels == 1 else "by_popularity"] = order.to(torch.int16)
    other = built()
    other.load_state_dict(old)
    assert torch.equal(other.scores(h), table.scores(h))
    # An order that does not follow from the priors is saved.
    table = built(counts, torch.zeros(items))
    table.quantize()
    other = built()
    other.load_state_dict(table.state_dict())
    assert torch.equal(table.state_dict()["by_popularity"].long(), order)
    assert torch.equal(other.scores(h), table.scores(h))


def test_rows_that_were_trained_after_quantization_are_saved_as_rows():
    table = adaptive(cut=QUANTIZED).float()
    table.quantize()
    with torch.no_grad():
        table.blocks[1].embedding.weight[0, 0] += 1
    state = table.state_dict()
    assert "blocks.1.embedding.weight" in state and "blocks.2.embedding.codes.0" in state
    other = adaptive(cut=QUANTIZED).float()
    other.quantize()
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(rows_of(other), rows_of(table), strict=True))
    assert not other.blocks[1].embedding.codes and other.parameter_count() == table.parameter_count()


@pytest.mark.parametrize("kind", ["one level", "tied"])
def test_codes_stay_with_a_table_of_another_precision(kind):
    table = quantizable(kind)
    table.quantize()
    count = table.parameter_count()
    assert table.double().parameter_count() == table.half().parameter_count() == count


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", ["one level", "tied", "untied"])
def test_codebooks_have_the_gradient_of_their_rows(kind, sparse):
    table = quantizable(kind).double()
    table.quantize()
    before = [[part.codes for part in embedding.codes] for embedding in table.quantized_embeddings()]
    books = table.train_codebooks()
    assert [tuple(book.shape) for book in books][:3] == [(256, 1), (256, 2), (256, 4)]
    if sparse:
        for embedding in table.quantized_embeddings():
            embedding.sparse = True
    items = torch.randint(1, 1001, (50,))

    def loss():
        embedded = table(items)
        embedded = embedded if kind != "untied" else table.output[1](items % 300)
        return (embedded * torch.arange(1.0, SIZE + 1)).pow(3).sum()

    loss().backward()
    for embedding in table.quantized_embeddings():
        embedding.backward_to_codebooks()
        assert embedding.weight.grad is None
    for book in books:
        if book.grad is None:  # a block without items here
            continue
        place = book.grad.abs().argmax()
        change = torch.zeros_like(book).view(-1).index_fill_(0, place, 1e-6).view_as(book)
        values = []
        for sign in (1, -2):  # above, below
            with torch.no_grad():
                book += sign * change
                for embedding in table.quantized_embeddings():
                    embedding.sync_rows()
                values.append(float(loss()))
        torch.testing.assert_close((values[0] - values[1]) / 2e-6, float(book.grad.flatten()[place]), rtol=1e-4, atol=0)
    assert sum(book.grad is not None for book in books) == (1 if kind == "untied" else 3)
    for embedding, codes in zip(table.quantized_embeddings(), before, strict=True):
        assert all(torch.equal(part.codes, old) for part, old in zip(embedding.codes, codes, strict=True))
    state = table.state_dict()
    assert not [name for name in state if name.endswith("embedding.weight")] and not any(
        part.requires_grad for part in state.values()
    )


def test_a_table_without_codes_is_not_quantized(table):
    before = {name: part.clone() for name, part in table.state_dict().items()}
    assert not table.quantize()
    assert all(torch.equal(part, before[name]) for name, part in table.state_dict().items())


def test_popular_items_have_the_finer_codes_on_one_level_too():
    table = quantizable("one level")
    before = table.items.detach().clone()
    table.quantize()
    lost = (table.items - before).square().mean(1)[table._by_popularity].split(list(table.cut.sizes))
    means = [float(block.mean()) for block in lost]
    assert means == sorted(means) and means[0] < 0.001 < 0.05 < means[2]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, FullItemTable),
        ({"item_codes": 1}, FullItemTable),
        ({"item_codes": 0}, AdaptiveItemTable),
        ({"item_levels": 2}, AdaptiveItemTable),
        ({"item_width_factor": 2.0}, AdaptiveItemTable),
        ({"item_output": "untied"}, AdaptiveItemTable),
    ],
)
def test_a_small_catalog_of_whole_rows_has_a_softmax_of_one_level(ml100k, values, kind):
    table = build_item_table(make_config("cprec", **values), ml100k.train._dataset, 1683, 64, 40_000)
    assert type(table) is kind


def test_a_large_catalog_has_two_levels_and_narrow_rows_cannot_have_one(monkeypatch, ml100k):
    with pytest.raises(AdaRecError, match=r"item_levels: 1 is for rows of 64 channels .* have \[64, 32, 16, 8\]"):
        build_item_table(make_config("cprec", item_width_factor=2.0, item_levels=1), ml100k.train._dataset, 1683, 64)
    monkeypatch.setattr("recbole_adarec.model.item_table.build._LARGEST_OF_ONE_LEVEL", 1000)
    config = make_config("cprec")
    assert isinstance(build_item_table(config, ml100k.train._dataset, 1683, 64, 40_000), AdaptiveItemTable)


# ---------------------------------------------------------------------- start, cut, popularity


@pytest.mark.parametrize("tied", [True, False])
def test_each_block_starts_as_the_best_approximation_of_its_rows(tied):
    table, rows = adaptive(tied), torch.randn(ITEMS, SIZE, dtype=torch.double)
    table.start_from(rows)
    for j, width in enumerate(CUT.widths):
        block = rows[table.ids(j)]
        for approximation in (table(table.ids(j)), table.scored_blocks[j](torch.arange(len(block)))):
            error = (approximation - block).square().sum()
            best = torch.linalg.svdvals(block)[width:].square().sum()
            torch.testing.assert_close(error, best, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "sizes", "widths"),
    [
        ({}, (7, 13, 27, 53), (64, 32, 16, 8)),
        ({"item_blocks": 2, "item_block_growth": 1.0, "item_width_factor": 4.0}, (50, 50), (64, 16)),
        ({"item_blocks": [10, 0.4], "item_widths": [32, 8, 2]}, (10, 30, 60), (32, 8, 2)),
        ({"item_blocks": 3, "item_block_growth": 100.0}, (1, 1, 98), (64, 32, 16)),
    ],
)
def test_the_cut_of_a_catalog(values, sizes, widths):
    assert cut_blocks(make_config("cprec", **values), 100, 64) == Blocks(sizes, widths)


CUT_KEYS = {"item_blocks": 4, "item_block_growth": 2.0, "item_widths": None, "item_width_factor": None}


@settings(derandomize=True, deadline=None)
@given(
    items=st.integers(16, 5000),
    size=st.integers(1, 64),
    blocks=st.one_of(st.integers(2, 4), st.lists(st.integers(1, 15), min_size=1, max_size=4, unique=True).map(sorted)),
    growth=st.floats(1, 3),
    codes=st.sampled_from([None, 0]),
    tied=st.booleans(),
    limit=st.one_of(st.none(), st.integers(1, 300_000)),
)
def test_blocks_hold_the_catalog_and_keep_a_limit_that_can_be_met(items, size, blocks, growth, codes, tied, limit):
    config = CUT_KEYS | {"item_blocks": blocks, "item_block_growth": growth, "item_codes": codes}
    cut = cut_blocks(config | {"item_output": "tied" if tied else "untied"}, items, size, limit)
    assert sum(cut.sizes) == items and min(cut.sizes) >= 1
    assert len(cut.sizes) == len(cut.widths) and len(cut.codes) in (0, len(cut.sizes))
    assert max(cut.widths) <= size and min(cut.widths) >= 1
    narrowest = Blocks(cut.sizes, (1,) * len(cut.sizes))
    if limit is not None and table_parameters(narrowest, size, tied) <= limit:
        assert table_parameters(cut, size, tied) <= limit


@pytest.mark.parametrize("codes", [None, 0])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("limit", "size"), [(200_000, 48), (100_000, 64), (80_000, 48), (40_000, 64), (20_000, 48), (6_000, 64)]
)
def test_a_table_has_what_a_limit_allows(limit, size, tied, codes):
    config = make_config("cprec", item_output="tied" if tied else "untied", item_codes=codes)
    blocks = cut_blocks(config, 1682, size, limit)
    table = AdaptiveItemTable(1683, size, blocks, tied=tied)
    assert table.quantize() == bool(blocks.codes)
    assert table.parameter_count() == table_parameters(blocks, size, tied) <= limit
    if blocks.codes:
        assert set(blocks.widths) == {size} and list(blocks.codes) == sorted(blocks.codes)
        finer = [tuple(max(c - (j == k), 1) for k, c in enumerate(blocks.codes)) for j in range(4)]
        assert all(
            table_parameters(blocks._replace(codes=f), size, tied) > limit for f in finer if f != blocks.codes
        ), "nothing is left lying"
    else:
        assert list(blocks.widths) == sorted(blocks.widths, reverse=True) and blocks.widths[0] <= size
        nothing_left = table.parameter_count() > 0.85 * limit or set(blocks.widths) == {size} or limit == 6_000
        assert nothing_left and (codes == 0 or limit <= 20_000 or set(blocks.widths) == {size})


@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("limit", range(300, 9000, 700))
def test_no_code_stands_for_more_channels_than_there_are(size, limit):
    blocks = cut_blocks(make_config("cprec"), 1682, size, limit)
    assert max(blocks.codes, default=1) <= size


def test_a_limit_changes_no_factor_width_or_code_of_the_configuration():
    assert cut_blocks(make_config("cprec", item_codes=3), 100, 64, 10) == Blocks((7, 13, 27, 53), (64,) * 4, (3,) * 4)
    with_both = make_config("cprec", item_codes=[1, 1, 2, 4], item_width_factor=2.0)
    assert cut_blocks(with_both, 100, 64) == Blocks((7, 13, 27, 53), (64, 32, 16, 8), (1, 1, 2, 4))
    assert cut_blocks(make_config("cprec", item_width_factor=4.0), 100, 64, 10).widths == (64, 16, 4, 1)
    assert cut_blocks(make_config("cprec", item_widths=[9, 8, 7, 6]), 100, 64, 10).widths == (9, 8, 7, 6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"item_blocks": 5}, r"item_blocks: 5 cuts the 4 items"),
        ({"item_blocks": [3, 2]}, r"item_blocks: \[3, 2\]"),
        ({"item_blocks": [2, 9]}, r"item_blocks: \[2, 9\]"),
        ({"item_blocks": 2, "item_widths": [64, 65]}, r"item_widths: \[64, 65\] for 2 blocks and 64 channels"),
        ({"item_blocks": 2, "item_widths": [64]}, r"give 2 widths from 1 to 64"),
        ({"item_blocks": 2, "item_codes": [2]}, r"item_codes: \[2\] for 2 blocks and 64 channels; .* 1 to 64, or 2 of"),
        ({"item_blocks": 2, "item_codes": 65}, r"item_codes: 65 for 2 blocks"),
    ],
)
def test_a_cut_that_does_not_fit_is_refused(values, message):
    with pytest.raises(AdaRecError, match=message):
        cut_blocks(make_config("cprec", **values), 4, 64)


def test_a_limit_below_the_narrowest_rows_gives_a_warning(ml100k, caplog):
    train = ml100k.train._dataset
    with caplog.at_level(logging.WARNING):
        assert build_item_table(make_config("cprec"), train, 1683, 64, 1000).cut.widths == (64, 32, 16, 8)
    assert "total_budget: it leaves 1000 parameters for the 1682 items" in caplog.text


@pytest.mark.parametrize(
    "values", [{"item_blocks": 1}, {"item_blocks": []}, {"item_widths": [1.5]}, {"item_table": "half"},
               {"item_codes": [1.5]}, {"item_codes": -1},
               {"teacher_item_table": "adaptive"}, {"layer_sharing": "all"}, {"item_output": "both"}],
)  # fmt: skip
def test_wrong_values_are_refused(values):
    with pytest.raises(AdaRecError, match=next(iter(values))):
        resolve_user_config("ml-100k", [], values)


def test_items_are_ordered_by_the_training_part_alone(ml100k):
    config, train = make_config("cprec"), ml100k.train._dataset
    table = build_item_table(config, train, train.item_num, 64)
    counts = item_counts(train, train.item_num)
    ordered = counts[table.by_popularity.long()]
    assert bool((ordered[:-1] >= ordered[1:]).all()) and int(counts.sum()) == len(train.inter_feat)
    assert len(train.inter_feat) < ml100k.dataset.inter_num  # the held-out items of all users are not in it
    with pytest.raises(AdaRecError, match="train_data._dataset"):
        build_item_table(config, ml100k.dataset, train.item_num, 64)


# ---------------------------------------------------------------------- priors


@pytest.mark.parametrize("kind", ["full", "adaptive"])
def test_without_rows_items_have_the_probability_of_their_priors(kind, ml100k):
    config = make_config(
        "student",
        item_table=kind,
        popularity_prior=2.0,
        served_prior=0.25,
    )
    train = ml100k.train._dataset
    table = build_item_table(config, train, train.item_num, 64)
    with torch.no_grad():
        for rows in table.embeddings():
            rows.zero_()
    if kind == "adaptive":
        torch.nn.init.zeros_(table.entries.weight)
    log_p = table.scores(torch.randn(1, 64))[0, 1:].log_softmax(0)
    expected = (item_counts(train, train.item_num)[1:] + 1).float().sqrt()
    torch.testing.assert_close(log_p.exp(), expected / expected.sum())


def test_there_are_no_priors_at_a_share_of_0(ml100k):
    train = ml100k.train._dataset
    assert popularity_prior(make_config("student", popularity_prior=0), train, train.item_num) is None
    assert not FullItemTable(ITEMS, SIZE).prior.any()


def test_validation_chooses_the_prior_scale_at_inference(ml100k, monkeypatch):
    """Of the scales tried the one with the best result; the likelihood of an item does not depend on it."""
    config = make_config("teacher")
    model = get_model("AdaRecTeacher")(config, ml100k.train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    results = {1.0: 0.3, 0.75: 0.2, 0.5: 0.4}
    monkeypatch.setattr(trainer, "evaluate", lambda *_, **__: {"ndcg@10": results[float(model.item_table.served)]})
    assert trainer.choose_served_prior(ml100k.valid, {"ndcg@10": 0.3}) == {"ndcg@10": 0.4}
    assert model.item_table.served == model.state_dict()["item_table.served"] == 0.5

    scores = user_scores(model.eval(), ml100k.valid)
    model.item_table.served.fill_(1.0)
    with_all = user_scores(model, ml100k.valid)
    torch.testing.assert_close(scores.log_likelihood, with_all.log_likelihood)
    assert not torch.equal(scores.ndcg, with_all.ndcg)

    model.item_table.prior.zero_()
    assert trainer.choose_served_prior(ml100k.valid, {"ndcg@10": 0.1}) == {"ndcg@10": 0.1}
