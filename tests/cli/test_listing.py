"""`nnunet_ext methods`, `options` and `presets`: what there is and what can be set."""

import json
from dataclasses import fields

import pytest

from nnunet_ext.cli.main import main
from nnunet_ext.methods import METHODS
from nnunet_ext.planning.derive import known_settings
from nnunet_ext.planning.describe import argument_meanings, describe_options

each_method = pytest.mark.parametrize("name", METHODS)


def answer(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_methods_lists_every_name_that_nnunet_needs(capsys):
    text = answer(capsys, "methods")
    facts = json.loads(answer(capsys, "methods", "--json"))
    for name, method in METHODS.items():
        for word in (name, method.title, *method.trainers, method.planner, method.plans_name, method.docs):
            assert word in text
        assert facts[name]["trainers"] == list(method.trainers)


@each_method
def test_what_a_method_names_is_there(name):
    method = METHODS[name]
    assert (method.curves() is None) == (method.curves_path is None or not method.curves_path)
    assert method.curves() is None or callable(method.curves())
    assert (method.needs() is None) == (method.needs_path is None)
    assert method.needs() is None or isinstance(method.needs()()[0], bool)
    assert list(method.sections()) == list(method.report_paths)
    assert all(callable(section) for section in method.sections().values())


@each_method
def test_options_shows_every_setting_with_its_help(name, capsys):
    text = " ".join(answer(capsys, "options", name).split())
    for field in fields(METHODS[name].options_class()):
        assert f"{field.name} = {json.dumps(field.default)}" in text
        assert " ".join(field.metadata["help"].split()) in text


@each_method
def test_options_have_the_titles_of_their_places(name, capsys):
    lines = answer(capsys, "options", name).splitlines()
    titles = [line for line in lines if line and not line.startswith(" ")][:-1]
    assert titles == ["training:", "network:", "configuration:"]
    assert lines[-1].endswith(f"--method {name} --name PLANS --set KEY=VALUE")


@each_method
def test_options_lists_what_plan_can_set_and_nothing_else(name, capsys):
    described = json.loads(answer(capsys, "options", name, "--json"))
    places = {"training": "training", "network": "architecture", "configuration": "configuration"}
    listed = {option["name"]: places[place] for place, options in described.items() for option in options}
    assert listed == known_settings(METHODS[name])


@each_method
def test_every_argument_of_a_network_is_explained(name):
    for option in describe_options(METHODS[name])["network"]:
        assert option["help"], option["name"]


def test_types_and_limits_are_those_that_are_checked(capsys):
    training = {o["name"]: o for o in describe_options(METHODS["e2enet"])["training"]}
    assert training["drop_rate"]["type"] == "float"
    assert (training["drop_rate"]["low"], training["drop_rate"]["high"]) == (0, 1)
    assert "drop_rate = 0.5   (float, 0 to 1)" in answer(capsys, "options", "e2enet")
    assert "save_every = 50   (int, at least 1)" in answer(capsys, "options", "e2enet")
    assert "warmup_epochs = null   (int or null, at least 0)" in answer(capsys, "options", "med_tuning")


@each_method
def test_presets_lists_every_preset_with_its_settings(name, capsys):
    lines = answer(capsys, "presets", name).splitlines()
    presets = METHODS[name].preset_settings()
    assert [line.partition(":")[0] for line in lines] == [f"{name}/{preset}" for preset in presets]
    for line, settings in zip(lines, presets.values(), strict=True):
        assert next(iter(settings)) in line
    assert json.loads(answer(capsys, "presets", name, "--json")) == json.loads(json.dumps(presets))


def test_an_unknown_method_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        main(["options", "unet"])
    assert "dints" in capsys.readouterr().err


def test_meanings_are_read_from_a_docstring():
    text = """What it is.

    Args:
        one, two: both of them,
            in two lines.
        three: `[a]: b`.

    Any other text: is none.
    """
    assert argument_meanings(text) == {"one": "both of them, in two lines.", "two": "both of them, in two lines.",
                                       "three": "`[a]: b`."}  # fmt: skip
    assert argument_meanings("No arguments.") == {}
