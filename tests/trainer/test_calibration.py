"""The bias of repeated items: in scores, losses and the k best items alike, and fitted on the validation data."""

from __future__ import annotations

import pytest
import torch
from recbole.utils import get_model, get_trainer

from recbole_adarec.evaluation.per_user import user_scores
from recbole_adarec.trainer.base import Batch
from recbole_adarec.trainer.calibration import fit_repeat_bias, repeat_share, seen_probability
from tests.helpers import make_config, with_random_weights


def student_of(ml100k, **values):
    return with_random_weights(
        get_model("AdaRecStudent")(make_config("student", **values), ml100k.train._dataset)
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize("item_table", ["full", "adaptive"])
@pytest.mark.parametrize("bias", [-8.0, -0.5, 0.0, 1.5, 20.0])
def test_the_k_best_are_those_of_all_scores(ml100k, item_table, bias):
    model = student_of(ml100k, item_table=item_table)
    model.repeat_bias.fill_(bias)
    torch.manual_seed(0)
    for length in (1, 7, 50):
        item_seq = torch.randint(1, model.n_items, (3, length))
        item_seq[:, -1] = item_seq[:, 0]  # a repeated item has the bias once
        lengths = torch.full((3,), length)
        scores = model.scores(item_seq, lengths)
        scores[:, 0] = -torch.inf
        for k in (1, 10, model.n_items - 1):
            best, expected = model.top_k(item_seq, lengths, k), scores.topk(k)
            torch.testing.assert_close(best.scores, expected.values)
            torch.testing.assert_close(scores.gather(1, best.items), expected.values)
            assert all(len(set(row)) == k for row in best.items.tolist())


@torch.no_grad()
def test_every_seen_item_has_the_bias_once_and_no_other_item_has_it(ml100k):
    model = student_of(ml100k)
    rows = ml100k.test._dataset[torch.arange(20)]
    plain = model.full_sort_predict(rows)
    model.repeat_bias.fill_(-3.0)
    difference = model.full_sort_predict(rows) - plain
    seen = torch.zeros_like(plain, dtype=torch.bool).scatter(1, rows["item_id_list"], True)
    torch.testing.assert_close(difference[:, 1:], torch.where(seen, -3.0, 0.0)[:, 1:], rtol=0, atol=1e-4)
    rows.interaction["item_id"] = rows["item_id_list"][:, 0]
    candidate = model.predict(rows)
    torch.testing.assert_close(candidate, model.full_sort_predict(rows).gather(1, rows["item_id"][:, None])[:, 0])


@pytest.mark.parametrize("share", [0.0005, 0.3, 0.9])
def test_a_fitted_model_repeats_about_as_often_as_the_data(ml100k, share):
    model = student_of(ml100k)
    fit_repeat_bias(model, ml100k.valid, share)
    assert seen_probability(model, ml100k.valid) == pytest.approx(share, rel=0.25)
    again = float(model.repeat_bias)
    fit_repeat_bias(model, ml100k.valid, share)
    assert float(model.repeat_bias) == pytest.approx(again)


def test_the_bias_raises_rank_and_likelihood_where_nobody_repeats(ml100k):
    """MovieLens: no film is rated twice."""
    share = repeat_share(ml100k.valid)
    assert share == pytest.approx(0.5 / (len(ml100k.valid._dataset) + 1))
    config = make_config("student", epochs=1)
    model = get_model("AdaRecStudent")(config, ml100k.train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(ml100k.train, saved=False, verbose=False, show_progress=False)
    before = user_scores(model.eval(), ml100k.test)
    trainer.fit_repeat_bias(ml100k.valid)
    after = user_scores(model, ml100k.test)
    assert float(model.repeat_bias) < -1
    assert after.ndcg.mean() > before.ndcg.mean() and after.log_likelihood.mean() > before.log_likelihood.mean()
    # The ranking among new items stays as it was.
    torch.testing.assert_close(after.ndcg_new, before.ndcg_new)
    assert (before.ndcg_new >= before.ndcg).all()


def test_a_bias_of_the_configuration_is_not_fitted(ml100k):
    config = make_config("student", repeat_bias=-1.0)
    model = get_model("AdaRecStudent")(config, ml100k.train._dataset)
    get_trainer(config["MODEL_TYPE"], config["model"])(config, model).fit_repeat_bias(ml100k.valid)
    assert float(model.repeat_bias) == float(model.state_dict()["repeat_bias"]) == -1.0


@pytest.mark.parametrize("stage", ["teacher", "student", "cprec"])
def test_the_losses_of_training_have_the_bias(ml100k, stage):
    """With full and with adaptive tables a trainer's loss is minus the log-probability of the model."""
    config = make_config(stage, item_loss="full" if stage == "teacher" else "auto")
    model = with_random_weights(get_model(config["model"])(config, ml100k.train._dataset))
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    batch = Batch(ml100k.train._dataset[torch.arange(0, 60, 7)], 0, 1.0)
    losses = []
    for bias in (0.0, -3.0, 2.0):
        model.repeat_bias.fill_(bias)
        trainer.repeat_bias = bias
        losses.append(float(trainer.batch_losses(batch)[0].detach()))
        # A full table's loss has the padding item in its sum: one of 1,683, with a logit of 0.
        assert losses[-1] == pytest.approx(float(model.calculate_loss(batch.interaction).detach()), rel=2e-3)
    assert losses[1] < losses[0] < losses[2], "no film of MovieLens is rated twice"
