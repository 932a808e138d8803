"""Run by `test_fused.py` in Triton's interpreter: logits and gradients of networks, and the kernels alone."""

import json
import os
import sys
from pathlib import Path

os.environ.update(TRITON_INTERPRET="1", nnUNet_ext_packed="0")

import torch
import torch.nn.functional as F

from nnunet_ext.e2enet import fused, grouped, rebuilding
from nnunet_ext.e2enet.depth_shift import channel_shifts, shifted_concat
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.shared_inputs import SharedInputConv3d

NETWORKS = {"sparse": {}, "blocks": {"connection_block": 4}, "no shift": {"shift_size": 0}}


def small(**settings):
    return E2ENet(1, 3, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]], base_features=4, **settings)


def concatenations():
    """Largest relative differences by type: odd sizes, one source of three pending, every axis, shifts up to two."""
    worst = {}
    for dtype in (torch.float32, torch.float16):
        differences = []
        for axis, shift_size in ((0, 1), (1, 2), (2, 1), (0, 0)):
            torch.manual_seed(axis)
            z, other = (torch.randn(2, count, 3, 5, 77).to(dtype) for count in (5, 4))
            norm = torch.nn.InstanceNorm3d(5, affine=True)
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)
            shifts = channel_shifts(13, shift_size)
            plain = F.leaky_relu(norm(z.float()), 0.01).to(dtype)
            pending = fused.Pending.of(z, norm.weight, norm.bias, norm.eps, 0.01)[0]
            found = fused.concatenate([other, pending, other], shifts, axis)
            expected = shifted_concat([other, plain, other], shifts, axis)
            assert found.dtype == dtype and not found[expected == 0].any()
            differences.append(float((found - expected).abs().max() / expected.abs().max()))
            differences.append(float((pending.written - plain).abs().max() / plain.abs().max()))
        worst[str(dtype)] = max(differences)
    return worst


def gradients():
    """Largest relative differences by type of the gradients of norm and activation: odd sizes, several blocks a row."""
    worst = {}
    for dtype in (torch.float32, torch.float16):
        torch.manual_seed(0)
        z, grad = (torch.randn(2, 5, 3, 7, 77).to(dtype) for _ in range(2))
        z = z * 3 + 1
        norm = torch.nn.InstanceNorm3d(5, affine=True)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        leaf = z.double().requires_grad_()
        F.leaky_relu(norm.double()(leaf), 0.01).backward(grad.double())
        expected = leaf.grad, norm.weight.grad, norm.bias.grad
        leaf = z.requires_grad_()
        own = norm.float()
        weight, bias = (p.detach().requires_grad_() for p in (own.weight, own.bias))
        of_leaf = rebuilding._NormAndActivation.apply(leaf, weight, bias, own.eps, 0.01)[0]
        of_leaf.backward(grad)
        found = leaf.grad, weight.grad, bias.grad
        assert leaf.grad.dtype == dtype
        pairs = zip(found, expected, strict=True)
        worst[str(dtype)] = [float((f.double() - e).abs().max() / e.abs().max()) for f, e in pairs]
    return worst


def trained():
    """Largest relative difference of a step's gradients by network, and which kernels made them."""
    used, found = set(), {}
    for owner, name in ((fused.Pending, "write"), (fused.Pending, "gradients"), (grouped, "gradients")):
        method = getattr(owner, name)

        label = f"{owner.__name__.split('.')[-1]}.{name}"

        def noting(*args, _label=label, _method=method):
            used.add(_label)
            return _method(*args)

        setattr(owner, name, noting)
    for name, settings in NETWORKS.items():
        torch.manual_seed(0)
        network = small(**settings).train()
        network.deep_supervision = True
        x = torch.randn(2, 1, 3, 7, 9)
        gradients = {}
        for value in ("0", "1"):
            used.clear()
            os.environ["nnUNet_ext_fused"] = value
            network.zero_grad()
            loss = sum(logits.square().mean() for logits in network(x))
            os.environ["nnUNet_ext_fused"] = "0"  # a backward pass is as its forward pass was
            loss.backward()
            gradients[value] = [p.grad.clone() for p in network.parameters()]
        pairs = zip(gradients["0"], gradients["1"], strict=True)
        largest = max(float(plain.abs().max()) for plain in gradients["0"])
        found[name] = sorted(used), max(float((plain - own).abs().max()) for plain, own in pairs) / largest
    return found


def blocks():
    """Largest relative differences by type of output and gradients of convolutions with blocks of connections."""
    worst = {}
    cases = [  # kernel, axis of the shift, channels of the sources, outputs, block, density
        ((1, 3, 3), 0, (5, 7, 3), 8, 4, 0.5),
        ((3, 1, 3), 1, (9,), 20, 20, 0.3),
        ((3, 3, 1), 2, (10, 11), 34, 17, 0.8),
        ((3, 3, 3), None, (6, 4), 8, 4, 1.0),
    ]
    for dtype in (torch.float32, torch.float16):
        differences = []
        for kernel, axis, channels, outputs, block, density in cases if dtype == torch.float32 else cases[:2]:
            torch.manual_seed(len(channels))
            padding = tuple(k // 2 for k in kernel)
            sizes = (sum(channels), outputs, kernel, (1, 1, 1), padding)
            conv = SharedInputConv3d(*sizes, density=density, connection_block=block)
            conv.draw_kernels(torch.randn(conv.dense_shape))
            for inputs in conv.inputs:
                inputs.copy_(inputs[torch.randperm(len(inputs))])
            conv.values.normal_()
            sources = [torch.randn(2, count, 3, 5, 5).to(dtype) for count in channels]
            shifts = [] if axis is None else channel_shifts(sum(channels), 1)
            gradient = torch.randn(2, outputs, 3, 5, 5).to(dtype)
            values = conv.values.to(dtype)
            found = [grouped.convolve(conv, sources, shifts)]
            of_sources, *others = grouped.gradients(conv, gradient, sources, shifts, values, [True] * 3)
            found += [*of_sources, *others]
            conv.values.data, conv.bias.data = values.double(), conv.bias.double()
            with torch.enable_grad():
                leaves = [source.double().requires_grad_() for source in sources]
                x = shifted_concat(leaves, shifts, axis or 0)
                expected = F.conv3d(x, conv.dense_weight(), conv.bias, padding=padding)
                leaves += [conv.values, conv.bias]
                expected = [expected, *torch.autograd.grad(expected, leaves, gradient.double())]
            assert found[0].dtype == found[1].dtype == dtype
            differences += [float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, expected, strict=True)]
        worst[str(dtype)] = max(differences)
    return worst


def networks():
    """Largest relative difference of the logits by network, and how many writes made them."""
    written = []
    write = fused.Pending.write

    def counting(self, *args):
        written.append(args)
        write(self, *args)

    fused.Pending.write = counting
    found = {}
    for name, settings in NETWORKS.items():
        torch.manual_seed(0)
        network = small(**settings).eval()
        x = torch.randn(1, 1, 3, 7, 9)
        logits = {}
        for value in ("0", "1"):
            written.clear()
            os.environ["nnUNet_ext_fused"] = value
            logits[value] = network(x)
        found[name] = len(written), float((logits["0"] - logits["1"]).abs().max() / logits["0"].abs().max())
    return found


with torch.no_grad():
    found = {"concatenations": concatenations(), "networks": networks(), "blocks": blocks()}
os.environ["nnUNet_ext_fused"] = "1"
found |= {"gradients": gradients(), "trained": trained()}
Path(sys.argv[1]).write_text(json.dumps(found))
