"""What a bank and its decision network hold and cost, by arithmetic alone: no torch, so that the command line is quick.

"true" counts multiply-adds that are computed. "paper" reproduces the tables of Med-DANet, whose FLOPs are multiply-adds
with 5 per element of a normalisation and transposed convolutions counted at their output's size. Only candidates that
are classes of other packages are built and measured.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_ext.med_danet.bank import PAPER_BANK, STRIDE, Candidate, read_bank
from nnunet_ext.planning.options import PLANS_KEY

GIGA = 1e9
POSITION_SIZE = (128, 128)  # pixels


@dataclass(frozen=True)
class Part:
    """A layer or several: parameters, multiply-adds of one slice, and what the paper's tables count."""

    parameters: int
    macs: int = 0
    paper: int = 0


def _conv(c_in: int, c_out: int, taps: int, pixels: int, bias: bool = True) -> Part:
    weights = c_in * c_out * taps
    return Part(weights + bias * c_out, weights * pixels, weights * pixels)


def _norm(width: int, pixels: int) -> Part:
    return Part(2 * width, 0, 5 * width * pixels)


def _up(width: int, below: int) -> Part:
    macs = 4 * width * width * below
    return Part(4 * width * width + width, macs, 4 * macs)


def _block(c_in: int, width: int, pixels: int, norm_in: bool) -> Iterator[Part]:
    yield _norm(c_in if norm_in else width, pixels)
    yield _norm(width, pixels)
    yield _conv(c_in, width, 9, pixels)
    yield _conv(width, width, 9, pixels)


def _encoder(channels: int, width: int, pixels: Sequence[int]) -> Iterator[Part]:
    yield _conv(channels, width, 9, pixels[0])
    for stage, blocks in enumerate((1, 2, 2, 4)):
        here = width * 2**stage
        if stage:
            yield _conv(here // 2, here, 9, pixels[stage])
        for _ in range(blocks):
            yield from _block(here, here, pixels[stage], norm_in=True)


def _decoder(width: int, num_classes: int, pixels: Sequence[int]) -> Iterator[Part]:
    for stage in (2, 1, 0):
        here = width * 2**stage
        yield _conv(2 * here, here, 1, pixels[stage + 1])
        yield _up(here, pixels[stage + 1])
        yield _conv(2 * here, here, 1, pixels[stage])
        yield from _block(here, here, pixels[stage], norm_in=True)
    yield _conv(width, num_classes, 1, pixels[0])


def _transformer(candidate: Candidate, tokens: int, grid: int) -> Iterator[Part]:
    width, d, m = 8 * candidate.width, candidate.embedding, candidate.hidden
    yield _norm(width, tokens)
    yield _conv(width, d, 9, tokens)
    yield Part(grid * d)  # positions
    for _ in range(candidate.layers):
        yield _norm(d, tokens)
        yield _conv(d, 3 * d, 1, tokens, bias=False)
        products = 2 * tokens * tokens * d
        yield Part(0, products, products)
        yield _conv(d, d, 1, tokens)
        yield _norm(d, tokens)
        yield _conv(d, m, 1, tokens)
        yield _conv(m, d, 1, tokens)
    yield _norm(d, tokens)
    yield from _block(d, width, tokens, norm_in=False)
    yield from _block(width, width, tokens, norm_in=False)


def candidate_parts(
    candidate: Candidate,
    channels: int,
    num_classes: int,
    size: Sequence[int],
    position_size: Sequence[int] = POSITION_SIZE,
) -> Iterator[Part]:
    """The pieces of a built-in candidate for one slice of `size` (height and width in pixels)."""
    padded = [math.ceil(side / STRIDE) * STRIDE for side in size]
    pixels = [math.prod(padded) // 4**stage for stage in range(4)]
    yield from _encoder(channels, candidate.width, pixels)
    if candidate.type == "transbts":
        yield from _transformer(candidate, pixels[3], math.prod(token_grid(position_size)))
    yield from _decoder(candidate.width, num_classes, pixels)


def token_grid(position_size: Sequence[int]) -> list[int]:
    """Height and width in tokens of slices of so many pixels."""
    return [math.ceil(side / STRIDE) for side in position_size]


def decision_parts(channels: int, choices: int, size: Sequence[int]) -> Iterator[Part]:
    """The pieces of the decision network for one slice of `size` (pixels)."""

    def pointwise(c_in: int, c_out: int, pixels: int) -> Iterator[Part]:
        yield _conv(c_in, c_out, 1, pixels, bias=False)
        yield _norm(c_out, pixels)

    def depthwise(width: int, pixels: int) -> Iterator[Part]:
        yield _conv(1, width, 9, pixels, bias=False)
        yield _norm(width, pixels)

    def half(sides: Sequence[int]) -> list[int]:
        return [math.ceil(side / 2) for side in sides]

    sides = half(size)
    yield _conv(channels, 12, 9, math.prod(sides), bias=False)
    yield _norm(12, math.prod(sides))
    sides, c_in = half(sides), 12
    for units, width in ((4, 24), (8, 48), (4, 96)):
        middle, before = width // 2, math.prod(sides)
        sides = half(sides)
        pixels = math.prod(sides)
        yield from depthwise(c_in, pixels)
        yield from pointwise(c_in, c_in, pixels)
        yield from pointwise(c_in, middle, before)
        yield from depthwise(middle, pixels)
        yield from pointwise(middle, width - c_in, pixels)
        for _ in range(units - 1):
            yield from pointwise(middle, middle, pixels)
            yield from depthwise(middle, pixels)
            yield from pointwise(middle, middle, pixels)
        c_in = width
    yield from pointwise(c_in, 256, math.prod(sides))
    yield _conv(256, choices, 1, 1, bias=False)


def total(parts: Iterator[Part]) -> Part:
    """The sum of all pieces."""
    listed = list(parts)
    return Part(*(sum(getattr(part, name) for part in listed) for name in ("parameters", "macs", "paper")))


def candidate_cost(
    candidate: Candidate,
    channels: int,
    num_classes: int,
    size: Sequence[int],
    position_size: Sequence[int] = POSITION_SIZE,
) -> Part:
    """Parameters and multiply-adds of one slice; a class of another package is built and measured (imports torch)."""
    if candidate.is_built_in:
        return total(candidate_parts(candidate, channels, num_classes, size, position_size))
    import torch

    from nnunet_ext.costs.complexity import count_flops, count_parameters
    from nnunet_ext.med_danet.candidates import build_candidate

    with torch.device("meta"):
        network = build_candidate(candidate, channels, num_classes, token_grid(position_size))
    macs = round(count_flops(network, channels, size) / 2)
    return Part(count_parameters(network)["total"], macs, macs)


def bank_costs(channels: int, num_classes: int, size: Sequence[int], arch_kwargs: Mapping[str, Any]) -> list[Part]:
    """Cost of one slice of `size` (pixels) for each candidate of a network with these arch_kwargs."""
    position_size = arch_kwargs.get("position_size") or POSITION_SIZE
    return [
        candidate_cost(candidate, channels, num_classes, size, position_size)
        for candidate in read_bank(arch_kwargs.get("candidates") or PAPER_BANK)
    ]


def largest(parts: Sequence[Part]) -> int:
    """The index of the candidate with the most parameters, which predicts while nothing is routed."""
    return max(range(len(parts)), key=lambda index: parts[index].parameters)


def cost_report(
    input_channels: int, num_classes: int, patch_size: Sequence[int], arch_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Parameters of bank and decision network; GMACs (1e9) and GFLOPs of a patch without routing.

    Every slice then takes the largest candidate. What routing spends depends on the images: see `spent_macs`.
    """
    bank = bank_costs(input_channels, num_classes, patch_size[-2:], arch_kwargs)
    decision = total(decision_parts(input_channels, len(bank) + 1, patch_size[-2:]))
    parameters = sum(part.parameters for part in bank) + decision.parameters
    return _report(input_channels, patch_size, parameters, math.prod(patch_size[:-2]) * bank[largest(bank)].macs)


def _report(channels: int, patch_size: Sequence[int], parameters: int, macs: int) -> dict[str, Any]:
    return {
        "network": "nnunet_ext.med_danet.network.MedDANet",
        "input_channels": int(channels),
        "patch_size": [int(p) for p in patch_size],
        "parameters": {"total": parameters, "trainable": parameters, "active": parameters},
        "true": {"gmacs": macs / GIGA, "gflops": 2 * macs / GIGA},
    }


def further_cost_reports(
    input_channels: int, num_classes: int, configuration: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What `nnunet_ext info` says besides: the decision network and each candidate, for one slice."""
    from nnunet_ext.med_danet.options import MedDANetOptions

    MedDANetOptions.from_plans(configuration.get(PLANS_KEY))  # refuses what training would refuse
    arch_kwargs, size = configuration["architecture"]["arch_kwargs"], configuration["patch_size"][-2:]
    bank = bank_costs(input_channels, num_classes, size, arch_kwargs)
    decision = total(decision_parts(input_channels, len(bank) + 1, size))
    titles = [candidate.title for candidate in read_bank(arch_kwargs.get("candidates") or PAPER_BANK)]
    named = {"decision network, a slice": decision}
    for number, (title, part) in enumerate(zip(titles, bank, strict=True), start=1):
        named[f"candidate {number} {title}, a slice"] = part
    return {name: _report(input_channels, size, part.parameters, part.macs) for name, part in named.items()}


def spent_macs(counts: Sequence[int], bank: Sequence[Part], decision: Part) -> int:
    """Multiply-adds that routing spent on slices of one size.

    Args:
        counts: slices that were skipped, then slices of each candidate.
        bank, decision: costs of one slice.
    """
    chosen = sum(count * part.macs for count, part in zip(counts[1:], bank, strict=True))
    return sum(counts) * decision.macs + chosen


def spent_report(
    counts: Sequence[int], channels: int, num_classes: int, size: Sequence[int], candidates: Sequence[Candidate]
) -> dict[str, Any]:
    """What routing spent on slices of `size` (pixels), true multiply-adds, against the largest candidate on all.

    Args:
        counts: slices that were skipped, then slices of each candidate; tiles and mirrored passes count each.
    """
    bank = [candidate_cost(candidate, channels, num_classes, size) for candidate in candidates]
    decision = total(decision_parts(channels, len(bank) + 1, size))
    return {
        "slices": sum(counts),
        "slice_size": [int(side) for side in size],
        "choices": ["skip", *(candidate.title for candidate in candidates)],
        "counts": list(counts),
        "ratios": [count / max(1, sum(counts)) for count in counts],
        "gmacs": spent_macs(counts, bank, decision) / GIGA,
        "gmacs_decision": sum(counts) * decision.macs / GIGA,
        "gmacs_unrouted": sum(counts) * bank[largest(bank)].macs / GIGA,
        "convention": "true",
    }
