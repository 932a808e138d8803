"""A compilation that fails costs a line, and the plain module goes on; other errors raise."""

import pytest
import torch
from torch import nn

from nnunet_ext.layers.compiling import fall_back_to_eager


def broken(graph, inputs):
    raise RuntimeError("the backend has no such kernel\nand more")


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def test_the_line_names_the_cause_and_is_said_once():
    network, said = nn.Linear(3, 2), []
    compiled = torch.compile(network, backend=broken)
    fall_back_to_eager(compiled, said.append)
    x = torch.randn(4, 3)
    for _ in range(3):
        assert torch.equal(compiled(x), network(x))
    (line,) = said
    assert line.startswith("torch.compile failed (RuntimeError: the backend has no such kernel), so Linear runs")
    assert "and more" not in line


def test_what_the_plain_module_refuses_too_is_raised_and_not_said():
    said = []
    compiled = torch.compile(nn.Linear(3, 2), backend="eager")
    fall_back_to_eager(compiled, said.append)
    with pytest.raises(RuntimeError, match="shape"):
        compiled(torch.randn(4, 5))
    assert said == []
    assert compiled(torch.randn(4, 3)).shape == (4, 2)


def test_a_full_memory_is_no_fault_of_the_compilation():
    class Full(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("full")

    compiled = torch.compile(Full(), backend="eager")
    fall_back_to_eager(compiled, lambda line: pytest.fail(line))
    with pytest.raises(torch.OutOfMemoryError):
        compiled(torch.zeros(1))


def test_a_compilation_that_works_is_used():
    used = []

    def counted(graph, inputs):
        used.append(graph)
        return graph.forward

    network = nn.Linear(3, 2)
    compiled = torch.compile(network, backend=counted)
    fall_back_to_eager(compiled, lambda line: pytest.fail(line))
    x = torch.randn(4, 3)
    assert torch.equal(compiled(x), network(x)) and len(used) == 1
