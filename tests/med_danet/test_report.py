"""What the report says of a validation that was routed, and how a strip is drawn."""

import json

import pytest
import torch
from matplotlib.colors import to_hex
from report.folders import Model, three_cases, write_json

from nnunet_ext.med_danet.accounting import validation_report
from nnunet_ext.med_danet.costs import slice_costs
from nnunet_ext.med_danet.network import MedDANet
from nnunet_ext.med_danet.report import FILE, STRIPS, section
from nnunet_ext.med_danet.strip import CANDIDATES, SKIPPED, strip_figure
from nnunet_ext.report.model_folder import read_model_folder

VOTES = [[4, 0, 0, 0, 0], [1, 3, 0, 0, 0], [0, 0, 0, 0, 4]]


def case(name, votes=VOTES):
    areas = {"outer": [0, 5, 9], "inner": [0, 0, 2]}
    return {"case": name, "votes": votes, "padding": [0] * 5, "areas": areas, "foreground": [0, 5, 11]}


def routed(root, cases):
    model = Model(root, "MedDANetTrainer")
    folder = model.fold(0, three_cases())
    write_json(folder / "med_danet_history.json", [{"epoch": 0, "phase": "decision"}])
    with torch.device("meta"):
        network = MedDANet(1, 3, strides=[[1, 1]])
    report = validation_report(cases, slice_costs(network, (32, 32)), 10**9)
    write_json(folder / "validation" / FILE, report)
    return model, folder


def test_ratios_costs_and_strips_are_on_the_page(tmp_path):
    model, _ = routed(tmp_path, [case("a"), case("b", [[4, 0, 0, 0, 0]] * 3)])
    made = section(read_model_folder(model.path))
    content, by_case = made.tables
    rows = {row[0]: row[1:] for row in content.rows}
    assert rows["no foreground"] == ["100.0 %", *["0.0 %"] * 4, "8"]
    assert rows["inner"] == ["50.0 %", "0.0 %", "0.0 %", "0.0 %", "50.0 %", "8"]
    assert rows["all"][-1] == "24"
    costs = {row[0]: row[-3:] for row in by_case.rows}
    assert costs["a"][2] == costs["b"][2] == "12.0" and costs["all"][2] == "24.0"
    assert float(costs["a"][0]) < float(costs["a"][1])
    # the cheapest case first
    assert [picture.caption.split()[0] for picture in made.pictures] == ["b", "a"]
    assert "skip 41.7 %" in made.pictures[1].alt


def test_of_many_cases_some_are_drawn(tmp_path):
    cases = [case(f"c{n}", [[20 - n, 0, 0, 0, n]] * 3) for n in range(20)]
    model, _ = routed(tmp_path, cases)
    made = section(read_model_folder(model.path))
    assert [p.caption.split()[0] for p in made.pictures] == ["c0", "c4", "c8", "c11", "c15", "c19"]
    assert f"{20 - STRIPS} further cases" in made.text[-1]


@pytest.mark.parametrize("content", ["{", "[]", '{"choices": []}'])
def test_a_damaged_file_becomes_a_note(tmp_path, content):
    model, folder = routed(tmp_path, [case("a")])
    (folder / "validation" / FILE).write_text(content)
    read = read_model_folder(model.path)
    assert section(read) is None
    assert FILE in read.notes[-1] and "left out" in read.notes[-1]


def test_older_files_without_cases_become_a_note(tmp_path):
    model, folder = routed(tmp_path, [case("a")])
    report = json.loads((folder / "validation" / FILE).read_text())
    del report["cases"]
    write_json(folder / "validation" / FILE, report)
    read = read_model_folder(model.path)
    assert section(read) is None and FILE in read.notes[-1]


def test_nothing_is_said_without_a_routed_validation(tmp_path):
    model, folder = routed(tmp_path, [case("a")])
    (folder / "validation" / FILE).unlink()
    read = read_model_folder(model.path)
    assert section(read) is None and read.notes == []


def test_a_strip_has_the_chosen_colour_at_each_slice_and_the_area_above():
    figure = strip_figure(VOTES, [0, 5, 11], ["skip", "A", "B", "C", "D"])
    above, below = figure.axes
    drawn = {
        (round(bar.get_x() + 0.5), to_hex(bar.get_facecolor())): bar.get_height()
        for bar in below.patches
        if bar.get_height() > 0
    }
    first, last = (CANDIDATES[k].lower() for k in (0, 3))
    assert drawn == {(0, SKIPPED): 1, (1, SKIPPED): 0.25, (1, first): 0.75, (2, last): 1}
    steps = above.patches[0].get_data()
    assert list(steps.values) == [0, 5, 11] and list(steps.edges) == [-0.5, 0.5, 1.5, 2.5]
