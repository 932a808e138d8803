"""What the report says of a DiNTS model and of a search."""

import json

import pytest
from dints.small import random_code
from report.folders import STRIDES, Model, three_cases, write_json

from nnunet_ext.dints.code_file import CodeFile
from nnunet_ext.dints.report import search_section, section
from nnunet_ext.report.model_folder import read_model_folder
from nnunet_ext.report.parts import MISSING

CODE = random_code(3, layers=4)
NETWORK = {
    "network_class_name": "nnunet_ext.dints.network.DiNTSNet",
    "arch_kwargs": {"strides": STRIDES, "base_features": 4, **CODE.settings()},
}


def trained(root, architecture=NETWORK, **options):
    model = Model(root, "DiNTSTrainer", architecture=architecture)
    plans = json.loads((model.path / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["nnunet_ext"] = options
    write_json(model.path / "plans.json", plans)
    folder = model.fold(0, three_cases())
    write_json(folder / "dints_history.json", [{"epoch": 0, "train_loss": 1.0}])
    return read_model_folder(model.path)


def row(epoch, **values):
    return {
        "epoch": epoch, "iterations": 4 * epoch, "L_alpha": 0.3, "L_eta": 0.006, "L_tp": 12.5, "memory_ratio": 0.45,
        "sigma": 0.2, "G": 5 - epoch, "active_edges": 17, "dice": 0.4, "memory_ratio_of_code": 0.21,
        **values,
    }  # fmt: skip


def searched(root, rows, code=CODE):
    model = Model(root, "DiNTSSearchTrainer", architecture=NETWORK)
    folder = model.fold(0, three_cases())
    write_json(folder / "dints_search_history.json", rows)
    if code is not None:
        probabilities = [[0.5] * 7] * 4
        meta = {"edge_probabilities": probabilities, "memory_ratio_of_code": 0.2123}
        CodeFile(code, meta=meta).write(folder / "architecture.json")
    return read_model_folder(model.path), folder


def table(made, title):
    found = next(t for t in made.tables if t.title == title)
    return dict(zip(found.head, found.rows[0], strict=True))


def test_a_model_shows_its_topology(tmp_path):
    made = section(trained(tmp_path))
    assert "do not say where it comes from" in made.text[0]
    assert made.pictures[0].alt.count("layer ") == 4
    facts = table(made, "Edges by operation")
    assert (facts["active edges"], facts["layers"], facts["scales"]) == (str(CODE.num_edges), "4", "3")
    assert sum(int(facts[name]) for name in list(facts)[4:9]) == CODE.num_edges


def test_a_searched_topology_tells_its_search(tmp_path):
    meta = {"dataset": "Dataset004_Hippocampus", "fold": 0, "sigma": 0.5, "iterations": 9, "seed": 1}
    made = section(trained(tmp_path, code_origin=CodeFile(CODE, meta=meta).origin()))
    assert "searched on Dataset004_Hippocampus, fold 0, with a budget of sigma 0.5" in made.text[0]


def test_stock_plans_show_the_published_topology(tmp_path):
    from report.folders import STOCK

    made = section(trained(tmp_path, STOCK))
    assert "authors of DiNTS published" in made.text[0]
    assert table(made, "Edges by operation")["active edges"] == "97"


def test_plans_with_a_bad_code_become_a_note(tmp_path):
    bad = {**NETWORK, "arch_kwargs": {**NETWORK["arch_kwargs"], "arch_code_a": [[0] * 7] * 4}}
    model = trained(tmp_path, bad)
    assert section(model) is None
    assert "The topology is left out" in model.notes[-1] and "no active edge" in model.notes[-1]


def test_a_search_shows_curves_and_code(tmp_path):
    model, _ = searched(tmp_path, [row(epoch) for epoch in range(-1, 4)])
    made = search_section(model)
    assert [p.caption for p in made.pictures] == [
        "The search, epoch by epoch",
        f"Fold 0: what the search found ({CODE.num_edges} active edges)",
    ]
    last = table(made, "At the end")
    assert (last["sigma"], last["expected"], last["of the code"], last["G"]) == ("0.2000", "0.4500", "0.2100", "2")
    facts = table(made, "Edges by operation")
    assert facts["memory ratio"] == "0.2123" and facts["MB kept"] == "1,257"


def test_a_search_of_before_the_ratio_of_the_code_was_written_is_shown(tmp_path):
    rows = [row(epoch) for epoch in range(3)]
    for each in rows:
        del each["memory_ratio_of_code"]
    model, _ = searched(tmp_path, rows)
    assert table(search_section(model), "At the end")["of the code"] == MISSING


def test_damaged_rows_and_codes_become_notes(tmp_path):
    rows = [row(0), row(1, G="many"), row(2, L_tp=float("nan")), {"epoch": 3}]
    model, folder = searched(tmp_path, rows)
    content = json.loads((folder / "architecture.json").read_text())
    (folder / "architecture.json").write_text(json.dumps({**content, "num_depths": 4}))
    made = search_section(model)
    assert len(made.pictures) == 1
    assert any("damaged rows" in note for note in model.notes)
    assert any("The code of fold 0 was left out" in note for note in model.notes)


@pytest.mark.parametrize("probabilities", [[[0.5]], "none", [["a"] * 7] * 4])
def test_probabilities_that_do_not_fit_are_not_drawn(tmp_path, probabilities):
    model, folder = searched(tmp_path, [row(0)])
    CodeFile(CODE, meta={"edge_probabilities": probabilities}).write(folder / "architecture.json")
    assert len(search_section(model).pictures) == 2


def test_nothing_is_said_without_a_search(tmp_path):
    assert search_section(trained(tmp_path)) is None
