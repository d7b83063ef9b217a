"""Layers of teachers against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.attention import SelfAttention
from recbole_adarec.model.causal_filter import WINDOWS, CausalFilter
from recbole_adarec.model.layers import Dropout
from recbole_adarec.model.linear_recurrence import LinearRecurrence
from recbole_adarec.model.teachers.causal_bsarec import FilterLayer
from recbole_adarec.model.teachers.stack import TransformerLayer
from recbole_adarec.storage.model_files import StoredConfig
from recbole_adarec.trainer.averaging import WeightAverage

SIZES = {"hidden_size": 16, "n_heads": 2, "inner_size": 32, "hidden_act": "gelu", "dropout_prob": 0.2}


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5])
def test_dropout_keeps_its_share_of_the_entries_and_their_sum(p):
    x = torch.ones(50, 40, 16, requires_grad=True)
    dropout = Dropout(p)
    y = dropout(x)
    kept = y != 0
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=0.01)
    assert float(kept.float().mean((0, 1)).std()) < 0.02 and float(kept.float().mean((1, 2)).std()) < 0.03
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 256 / (256 - round(256 * p))))
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    assert dropout.eval()(x) is x


@torch.no_grad()
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_a_transformer_layer_is_that_of_torch(norm_first, causal):
    """Stored teachers of version 0.1.0 hold the weights of torch's layer."""
    layer = TransformerLayer(StoredConfig(SIZES, norm_first=norm_first)).eval()
    reference = nn.TransformerEncoderLayer(16, 2, 32, 0.2, "gelu", batch_first=True, norm_first=norm_first).eval()
    layer.load_state_dict(reference.state_dict())
    x, keys = torch.randn(3, 10, 16), torch.arange(10) < torch.tensor([[10], [7], [1]])
    if causal:
        future = torch.ones(10, 10, dtype=torch.bool).triu(1)
        torch.testing.assert_close(layer(x), reference(x, src_mask=future), rtol=1e-4, atol=1e-5)
    else:
        expected = reference(x, src_key_padding_mask=~keys)
        torch.testing.assert_close(layer(x, keys)[keys], expected[keys], rtol=1e-4, atol=1e-5)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(AdaRecError, match="n_heads: 3 heads do not divide hidden_size 16"):
        SelfAttention(16, 3, 0.0)


@torch.no_grad()
def test_the_filter_is_the_moving_average_and_its_rescaled_rest():
    layer, x = CausalFilter(10), torch.randn(2, 20, 10)
    torch.testing.assert_close(layer(x), x)  # at the start
    layer.beta.copy_(torch.rand(10))
    sizes = [len(part) for part in torch.arange(10).tensor_split(4)]
    windows = torch.tensor(WINDOWS).repeat_interleave(torch.tensor(sizes))
    for t in range(20):
        low = torch.stack([x[:, max(0, t + 1 - w) : t + 1, c].mean(1) for c, w in enumerate(windows.tolist())], -1)
        torch.testing.assert_close(layer(x)[:, t], low + layer.beta**2 * (x[:, t] - low), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [3, 50, 200])
def test_the_filter_is_the_same_in_training_and_at_inference(length):
    layer, x = CausalFilter(10), torch.randn(2, length, 10)
    torch.nn.init.uniform_(layer.beta)
    trained = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), trained, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(layer(x.half()).float(), trained, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_filter_layer_weighs_its_parts_and_has_none_without_weight(norm_first, weight):
    layer = FilterLayer(StoredConfig(SIZES, norm_first=norm_first, filter_weight=weight)).eval()
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm" in name else 0.3, 0.1)
    x = torch.randn(3, 10, 16)
    z = layer.norm1(x) if norm_first else x
    filtered = layer.filter(z) if weight > 0 else torch.zeros_like(z)
    attended = layer.self_attn(z, None) if weight < 1 else torch.zeros_like(z)
    if norm_first:
        y = x + weight * filtered + (1 - weight) * attended
        expected = y + layer.feed_forward(layer.norm2(y))
    else:
        norm = layer.norm_filter if 0 < weight < 1 else layer.norm1
        y = weight * norm(x + filtered) + (1 - weight) * layer.norm1(x + attended)
        expected = layer.norm2(y + layer.feed_forward(y))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    layer(x).sin().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("length", [1, 2, 13])
def test_the_linear_recurrence_is_its_recursion(length, training):
    layer, x = LinearRecurrence(6).train(training), torch.randn(3, length, 6)
    entered = layer.enter(x) * layer.log_gamma.exp().repeat(2)
    inputs = torch.complex(entered[..., :6], entered[..., 6:])
    eigenvalue = torch.polar(torch.exp(-layer.log_decay.exp()), layer.log_angle.exp())
    state, outputs = torch.zeros(3, 6, dtype=torch.complex64), []
    for t in range(length):
        state = eigenvalue * state + inputs[:, t]
        outputs.append(layer.leave(torch.cat([state.real, state.imag], -1)))
    torch.testing.assert_close(layer(x), torch.stack(outputs, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_gradients_of_the_recurrence_in_training_are_those_of_the_scan(length):
    layer, x = LinearRecurrence(3).double(), torch.randn(2, length, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    inputs = [x, *layer.parameters()]
    found, expected = (
        torch.autograd.grad(layer.train(training)(x).sin().sum(), inputs, materialize_grads=True)
        for training in (True, False)
    )
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_averaged_weights_are_a_mean_of_late_ones():
    weight = torch.zeros(3)
    average = WeightAverage([weight], share=0.2)
    for step in range(1, 801):
        weight.fill_(step)
        average.update()
    average.show(True)
    assert 640 <= float(weight[0]) < 790
    average.show(True)  # a second time changes nothing
    average.show(False)
    assert weight.tolist() == [800.0] * 3
