"""Options of a plans file: defaults, types, limits, and messages that name what is known."""

import ast
import inspect
import math
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path

import pytest

from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.options import E2ENetOptions
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.planning.options import TrainingOptions, architecture_options, option, refuse_unknown

CLASSES = [TrainingOptions, E2ENetOptions]


@dataclass(frozen=True)
class Example(TrainingOptions):
    share: float | None = option(0.5, "a number that may be absent", low=0, high=1)
    switch: bool = option(False, "yes or no")
    name: str = option("a", "a text")


def nnunets_own(name):
    """What nnU-Net's trainer assigns to `self.<name>`, read from its source."""
    source = Path(find_spec("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").origin).read_text()
    values = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and any(isinstance(target, ast.Attribute) and target.attr == name for target in node.targets)
    ]
    assert len(values) == 1
    return values[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_epochs", 1000),
        ("num_iterations_per_epoch", 250),
        ("num_val_iterations_per_epoch", 50),
        ("initial_lr", 0.01),
        ("weight_decay", 3e-5),
        ("save_every", 50),
    ],
)
def test_defaults_are_nnunets(name, value):
    assert getattr(TrainingOptions(), name) == value == nnunets_own(name)


def test_e2enets_defaults_are_the_papers():
    options = E2ENetOptions()
    assert (options.update_every, options.drop_rate, options.final_drop_rate) == (1200, 0.5, 0.001)
    assert options.freeze_topology is False


@pytest.mark.parametrize("options_class", CLASSES)
def test_every_option_has_a_help_text_and_a_default_within_its_limits(options_class):
    assert all(len(f.metadata["help"]) > 10 for f in fields(options_class))
    defaults = {f.name: f.default for f in fields(options_class)}
    assert options_class.from_plans(defaults) == options_class()


@pytest.mark.parametrize("values", [None, {}])
def test_absent_options_have_their_default(values):
    assert E2ENetOptions.from_plans(values) == E2ENetOptions()


def test_given_options_replace_defaults():
    options = E2ENetOptions.from_plans({"num_epochs": 3, "drop_rate": 0.25, "freeze_topology": True})
    assert (options.num_epochs, options.drop_rate, options.freeze_topology) == (3, 0.25, True)
    assert options.num_iterations_per_epoch == 250


def test_an_integer_is_taken_for_a_float():
    value = Example.from_plans({"initial_lr": 1}).initial_lr
    assert (value, type(value)) == (1.0, float)


def test_null_is_taken_where_it_is_allowed():
    assert Example.from_plans({"share": None}).share is None


def test_limits_are_inclusive():
    assert Example.from_plans({"share": 0, "num_epochs": 1}) == Example(share=0.0, num_epochs=1)
    assert Example.from_plans({"share": 1, "seed": 2**31}) == Example(share=1.0, seed=2**31)


def test_an_unknown_option_is_refused_with_all_known_ones():
    with pytest.raises(ConfigurationError) as caught:
        E2ENetOptions.from_plans({"epochs": 3, "lr": 0.1, "num_epochs": 3})
    message = str(caught.value)
    assert message.startswith("Unknown training option of E2ENetOptions: epochs, lr. Known: ")
    known = message.partition("Known: ")[2].rstrip(".").split(", ")
    assert known == sorted(f.name for f in fields(E2ENetOptions))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_epochs": 1.5}, "Option 'num_epochs' must be int, found 1.5."),
        ({"num_epochs": "10"}, "Option 'num_epochs' must be int, found '10'."),
        ({"num_epochs": True}, "Option 'num_epochs' must be int, found True."),
        ({"num_epochs": None}, "Option 'num_epochs' must be int, found None."),
        ({"initial_lr": "fast"}, "Option 'initial_lr' must be float, found 'fast'."),
        ({"initial_lr": False}, "Option 'initial_lr' must be float, found False."),
        ({"initial_lr": [0.1]}, "Option 'initial_lr' must be float, found [0.1]."),
        ({"switch": 1}, "Option 'switch' must be bool, found 1."),
        ({"name": 1}, "Option 'name' must be str, found 1."),
        ({"share": "half"}, "Option 'share' must be float or null, found 'half'."),
    ],
)
def test_a_wrong_type_is_refused_in_a_sentence(values, sentence):
    with pytest.raises(ConfigurationError) as caught:
        Example.from_plans(values)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_epochs": 0}, "Option 'num_epochs' must be at least 1, found 0."),
        ({"num_epochs": -1}, "Option 'num_epochs' must be at least 1, found -1."),
        ({"initial_lr": 0}, "Option 'initial_lr' must be at least 1e-12, found 0.0."),
        ({"initial_lr": math.nan}, "Option 'initial_lr' must be a finite number, found nan."),
        ({"initial_lr": math.inf}, "Option 'initial_lr' must be a finite number, found inf."),
        ({"weight_decay": -1e-5}, "Option 'weight_decay' must be at least 0, found -1e-05."),
        ({"share": 1.01}, "Option 'share' must be from 0 to 1, found 1.01."),
        ({"share": math.nan}, "Option 'share' must be a finite number, found nan."),
        ({"seed": 2**31 + 1}, "Option 'seed' must be from 0 to 2147483648, found 2147483649."),
    ],
)
def test_a_value_beyond_its_limits_is_refused_in_a_sentence(values, sentence):
    with pytest.raises(ConfigurationError) as caught:
        Example.from_plans(values)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("values", [[], "num_epochs=3", 3])
def test_options_must_be_a_dict(values):
    with pytest.raises(ConfigurationError, match="must be a dict of options, found"):
        TrainingOptions.from_plans(values)


def test_options_cannot_be_changed_afterwards():
    with pytest.raises(AttributeError):
        TrainingOptions().num_epochs = 3


def test_known_names_pass():
    refuse_unknown({"b": 1}, ["a", "b"], "thing")
    refuse_unknown([], [], "thing")


def test_the_architecture_options_are_the_constructors_keyword_arguments():
    options = architecture_options(E2ENet)
    assert list(options)[0] == "strides"
    assert options["strides"] is inspect.Parameter.empty, "strides have no default"
    assert options["sparsity"] == 0.8
    assert not options.keys() & {"self", "input_channels", "num_classes", "deep_supervision"}
