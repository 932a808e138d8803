"""A network as a fixed sequence of operations, and how far two networks are apart."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.errors import ConfigurationError


def fixed_graph(network: nn.Module, x: Tensor, target: str, advice: str) -> Any:
    """What `network` computes for `x [B, C, *patch]`, as torch.export's program with one output.

    `target` and `advice` are for the sentence of a refusal: what it is converted to, and what to do instead.

    Raises:
        ConfigurationError: what is computed depends on the image's values, or there is not one tensor of logits.
    """
    name = type(network).__name__
    refuse_by_name(network, target, advice)
    with torch.no_grad(), quiet():
        try:
            exported = torch.export.export(network, (x,), strict=False)
        except Exception as error:  # of many kinds, torch's own and the network's
            raise ConfigurationError(
                f"{name} cannot be converted to {target}: torch.export finds no fixed sequence of operations in it "
                f"({first_line(error)}). {advice}"
            ) from error
    outputs = exported.graph_signature.user_outputs
    if len(outputs) != 1:
        raise ConfigurationError(
            f"{name} returns {len(outputs)} tensors, of which prediction needs one: switch its deep supervision off."
        )
    return exported


def refuse_by_name(network: nn.Module, target: str, advice: str) -> None:
    """Refuses a network that says of itself, as `no_fixed_graph`, why it has none.

    Raises:
        ConfigurationError: it does.
    """
    reason = getattr(network, "no_fixed_graph", None)
    if reason is not None:
        raise ConfigurationError(f"{type(network).__name__} cannot be converted to {target}: {reason}. {advice}")


def agreement(network: nn.Module, other: nn.Module, x: Tensor) -> dict[str, float]:
    """How far the logits `[B, K, *size]` of two networks for `x [B, C, *size]` are apart.

    "largest logit difference", the same "relative to range" of the first one's logits, and the "share of equal labels":
    of the largest logit, or, with one class, of the logit above 0.
    """
    with torch.no_grad():
        one, two = network(x).clone(), other(x)
    return apart(one, two)


def apart(one: Tensor, two: Tensor) -> dict[str, float]:
    """`agreement` of logits `[B, K, *size]` that are there already."""
    difference = float((one.double() - two.double()).abs().max())
    extent = float(one.max() - one.min())
    labels = [logits.argmax(1) if logits.shape[1] > 1 else logits > 0 for logits in (one, two)]
    return {
        "largest logit difference": difference,
        "relative to range": difference / extent if extent > 0 else float(difference > 0),
        "share of equal labels": float((labels[0] == labels[1]).double().mean()),
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch and its converters say about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, to be put into a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip().rstrip(".")
