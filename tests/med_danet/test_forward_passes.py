"""The candidates and the decision network, written out once more as plain functions of their weights.

Parameters and multiply-adds do not see an exchanged order, a missing scale or a shuffle by halves; these do.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from nnunet_ext.layers.norm import SliceNorm
from nnunet_ext.med_danet.bank import read_bank
from nnunet_ext.med_danet.candidates import DROPOUT, TOKEN_DROPOUT, build_candidate
from nnunet_ext.med_danet.decision import DecisionNetwork

GRID = (2, 3)  # tokens of a slice of 16x24


def moved(network, seed=0):
    """The network in evaluation with weights, norms and statistics that all do something, in float64."""
    rng = torch.Generator().manual_seed(seed)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        with torch.no_grad():
            tensor.copy_(
                torch.randn(tensor.shape, generator=rng) / math.sqrt(max(1, tensor[0].numel() if tensor.ndim else 1))
            )
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return network.double().eval()


class Weights:
    """A state dict, read by the names below a prefix."""

    def __init__(self, state, prefix=""):
        self.state, self.prefix = state, prefix

    def __getitem__(self, name):
        return self.state[f"{self.prefix}{name}"]

    def get(self, name):
        return self.state.get(f"{self.prefix}{name}")

    def at(self, *names):
        return Weights(self.state, self.prefix + "".join(f"{name}." for name in names))

    def conv(self, name, x, stride=1, groups=1):
        weight = self[f"{name}.weight"]
        return F.conv2d(x, weight, self.get(f"{name}.bias"), stride, weight.shape[-1] // 2, groups=groups)

    def norm(self, name, x):
        mean, var = self[f"{name}.running_mean"], self[f"{name}.running_var"]
        scale = self[f"{name}.weight"] / torch.sqrt(var + 1e-5)
        return x * scale[:, None, None] + (self[f"{name}.bias"] - mean * scale)[:, None, None]

    def layer_norm(self, name, x):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(var + 1e-5) * self[f"{name}.weight"] + self[f"{name}.bias"]

    def linear(self, name, x):
        y = x @ self[f"{name}.weight"].T
        return y if self.get(f"{name}.bias") is None else y + self[f"{name}.bias"]


def pre_activation(w, x):
    y = w.conv("conv1", w.norm("norm1", x).clamp(min=0))
    return x + w.conv("conv2", w.norm("norm2", y).clamp(min=0))


def post_activation(w, x, residual):
    y = w.norm("norm1", w.conv("conv1", x)).clamp(min=0)
    y = w.norm("norm2", w.conv("conv2", y)).clamp(min=0)
    return x + y if residual else y


def encoder(w, x):
    x = w.conv("stem", x)
    outputs = []
    for stage, blocks in enumerate((1, 2, 2, 4)):
        if stage:
            x = w.conv(f"downs.{stage - 1}", x, stride=2)
        for number in range(blocks):
            x = pre_activation(w.at("stages", stage, number), x)
        outputs.append(x)
    return outputs


def decoder(w, x, skips, block):
    for step, skip in enumerate(skips[::-1]):
        up = w.at("ups", step)
        y = F.conv_transpose2d(up.conv("reduce", x), up["up.weight"], up["up.bias"], 2)
        x = block(w.at("blocks", step), up.conv("join", torch.cat([skip, y], 1)))
    return w.conv("seg_layers.0", x)


def unet(w, x):
    *skips, x = encoder(w.at("encoder"), x)
    return decoder(w.at("decoder"), x, skips, pre_activation)


def attention(w, x, heads):
    tokens, width = x.shape[1:]
    q, k, v = w.linear("qkv", x).split(width, -1)
    parts = []
    for part in zip(*(t.split(width // heads, -1) for t in (q, k, v)), strict=True):
        scores = part[0] @ part[1].transpose(1, 2) / math.sqrt(width // heads)
        parts.append(torch.softmax(scores, -1) @ part[2])
    return w.linear("out", torch.cat(parts, -1))


def transbts(w, x, layers, heads):
    *skips, x = encoder(w.at("encoder"), x)
    x = w.conv("embed", w.norm("norm", x).clamp(min=0))
    height, width = x.shape[2:]
    tokens = torch.stack([x[:, :, i, j] for i in range(height) for j in range(width)], 1) + w["position"]
    for number in range(layers):
        layer = w.at("layers", number)
        tokens = tokens + attention(layer, layer.layer_norm("norm1", tokens), heads)
        hidden = layer.linear("mlp.0", layer.layer_norm("norm2", tokens))
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens = tokens + layer.linear("mlp.3", hidden)
    tokens = w.layer_norm("last_norm", tokens)
    x = torch.stack([torch.stack([tokens[:, i * width + j] for j in range(width)], -1) for i in range(height)], -2)
    x = post_activation(w.at("reduce"), x, residual=False)
    x = post_activation(w.at("refine"), x, residual=True)
    return decoder(w.at("decoder"), x, skips, lambda block, y: post_activation(block, y, residual=True))


def unit(w, x, stride):
    """ShuffleNetV2's, whose shuffle of the unit before stands here as taking every second channel."""
    if stride == 1:
        kept, x = x[:, 0::2], x[:, 1::2]
    else:
        kept = w.norm("shortcut.1", w.conv("shortcut.0", x, 2, x.shape[1]))
        kept = w.norm("shortcut.3", w.conv("shortcut.2", kept)).clamp(min=0)
    y = w.norm("branch.1", w.conv("branch.0", x)).clamp(min=0)
    y = w.norm("branch.4", w.conv("branch.3", y, stride, y.shape[1]))
    y = w.norm("branch.6", w.conv("branch.5", y)).clamp(min=0)
    return torch.cat([kept, y], 1)


def decision(w, x):
    x = w.norm("stem.1", w.conv("stem.0", x, 2)).clamp(min=0)
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-math.inf), 3, 2)
    number = 0
    for units in (4, 8, 4):
        for k in range(units):
            x = unit(w.at("stages", number), x, 1 if k else 2)
            number += 1
    x = w.norm("last.1", w.conv("last.0", x)).clamp(min=0)
    return w.linear("classify", x.flatten(2).mean(2))


def image(size=(16, 24), channels=2):
    return torch.randn(3, channels, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_equal(found, expected):
    assert expected.std() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_unet():
    network = moved(build_candidate(read_bank([{"type": "unet", "width": 4}])[0], 2, 3, GRID))
    with torch.no_grad():
        assert_equal(network(image()), unet(Weights(network.state_dict()), image()))


@pytest.mark.parametrize("layers", [1, 3])
def test_transbts(layers):
    settings = {"type": "transbts", "width": 4, "layers": layers, "embedding": 24, "heads": 3, "hidden": 20}
    network = moved(build_candidate(read_bank([settings])[0], 2, 3, GRID))
    with torch.no_grad():
        assert_equal(network(image()), transbts(Weights(network.state_dict()), image(), layers, 3))


@pytest.mark.parametrize("size", [(32, 32), (40, 25)])
def test_the_decision_network(size):
    network = moved(DecisionNetwork(2, 5))
    with torch.no_grad():
        assert_equal(network(image(size)), decision(Weights(network.state_dict()), image(size)))


def test_the_decision_network_starts_as_in_the_reference():
    torch.manual_seed(0)
    network = DecisionNetwork(4, 5)
    state = network.state_dict()
    assert float(state["stem.0.weight"].std()) == pytest.approx(0.01, rel=0.1)
    assert float(state["classify.weight"].std()) == pytest.approx(0.01, rel=0.1)
    assert float(state["last.0.weight"].std()) == pytest.approx(1 / 96, rel=0.1)
    depthwise = torch.cat([v.flatten() for k, v in state.items() if k.endswith("branch.3.weight")])
    assert float(depthwise.std()) == pytest.approx(1, rel=0.1)
    norms = [module for module in network.modules() if isinstance(module, SliceNorm)]
    assert norms and all((norm.bias == 1e-4).all() and (norm.weight == 1).all() for norm in norms)


def test_dropout_is_of_the_stems_channels_and_of_tokens():
    settings = {"type": "transbts", "width": 4, "layers": 2, "embedding": 24, "heads": 3, "hidden": 20}
    network = build_candidate(read_bank([settings])[0], 2, 3, GRID)
    rates = {name: module.p for name, module in network.named_modules() if "Dropout" in type(module).__name__}
    assert (DROPOUT, TOKEN_DROPOUT) == (0.2, 0.1)
    assert rates.pop("encoder.dropout") == 0.2 and type(network.encoder.dropout) is torch.nn.Dropout2d
    assert len(rates) == 1 + 2 * 3 and set(rates.values()) == {0.1}
    seen = []
    network.encoder.dropout.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    network.train()(image().float())
    ((before, after),) = seen
    whole = (after == 0).flatten(2).all(2)
    assert whole.any() and not whole.all()
    torch.testing.assert_close(after[~whole], before[~whole] / 0.8)


def test_attention_drops_out_in_training_only(monkeypatch):
    settings = {"type": "transbts", "width": 4, "layers": 1, "embedding": 24, "heads": 3, "hidden": 20}
    network = build_candidate(read_bank([settings])[0], 2, 3, GRID)
    rates, plain = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, dropout_p: rates.append(dropout_p) or plain(*a))
    network.train()(image().float())
    network.eval()(image().float())
    assert rates == [0.1, 0.0]
