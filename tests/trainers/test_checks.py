"""Data that were preprocessed for other plans and folds of another network are refused before a training begins."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from end_to_end.stock import Workspace, handmade_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.trainers.checks import check_other_folds, check_patch, check_preprocessed
from nnunet_ext.trainers.e2enet import E2ENetTrainer

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]


def plans_of(**changes):
    architecture = {
        "network_class_name": f"{E2ENet.__module__}.E2ENet",
        "arch_kwargs": {"strides": STRIDES, "base_features": 4},
        "_kw_requires_import": [],
    }
    plans = handmade_plans(architecture, strides=STRIDES)
    plans["configurations"]["3d_fullres"].update(changes)
    return plans


class Dataset:
    """One case as nnU-Net's datasets give it."""

    def __init__(self, shape, properties):
        self.identifiers = ["case_7"]
        self.case = np.zeros((1, *shape)), np.zeros((1, *shape)), None, properties

    def load_case(self, identifier):
        assert identifier == "case_7"
        return self.case


def check(dataset, configuration="3d_fullres", transpose=(0, 1, 2), **changes):
    plans = plans_of(**changes)
    plans["transpose_forward"] = list(transpose)
    manager = PlansManager(plans)
    check_preprocessed(dataset, manager, manager.get_configuration(configuration), configuration)


def test_a_subclass_that_changes_its_patch_is_refused():
    manager = PlansManager(plans_of())
    configuration = manager.get_configuration("3d_fullres")
    check_patch(manager, configuration, "3d_fullres")
    configuration.configuration["patch_size"] = [8, 8, 8]
    with pytest.raises(ConfigurationError, match=r"to \[8, 8, 8\], but the plans .* say \[.*--set patch_size"):
        check_patch(manager, configuration, "3d_fullres")


def test_what_the_preprocessor_makes_is_accepted_and_another_spacing_refused():
    spacing = plans_of()["configurations"]["3d_fullres"]["spacing"]
    cropped, original = (10, 20, 30), [2 * s for s in spacing]
    properties = {"shape_after_cropping_and_before_resampling": cropped, "spacing": original}
    check(Dataset((20, 40, 60), properties))
    for shape in ((10, 20, 30), (20, 40, 59), (40, 20, 60)):
        with pytest.raises(ConfigurationError, match=r"case_7 in .* was preprocessed to .*made for other plans"):
            check(Dataset(shape, properties))


def test_axes_are_taken_in_the_plans_order():
    """`spacing` in the properties is the image's, the shape is already transposed."""
    original = [4.0, 1.0, 2.0]
    transposed = [original[axis] for axis in (1, 2, 0)]
    spacing = [1.0, 1.0, 1.0]
    shape = tuple(round(n * s) for n, s in zip((5, 6, 7), transposed, strict=True))
    properties = {"shape_after_cropping_and_before_resampling": (5, 6, 7), "spacing": original}
    check(Dataset(shape, properties), transpose=(1, 2, 0), spacing=spacing)
    with pytest.raises(ConfigurationError):
        check(Dataset(shape, properties), spacing=spacing)


def test_2d_leaves_the_slices_where_they_are():
    properties = {"shape_after_cropping_and_before_resampling": (5, 10, 10), "spacing": [9.0, 2.0, 2.0]}
    plans = plans_of()
    plans["configurations"]["2d"]["spacing"] = [1.0, 0.5]
    manager = PlansManager(plans)
    planar = manager.get_configuration("2d")
    check_preprocessed(Dataset((5, 20, 40), properties), manager, planar, "2d")
    with pytest.raises(ConfigurationError):
        check_preprocessed(Dataset((6, 20, 40), properties), manager, planar, "2d")


def test_what_cannot_be_known_is_not_refused():
    spacing = plans_of()["configurations"]["3d_fullres"]["spacing"]
    properties = {"shape_after_cropping_and_before_resampling": (3, 3, 3), "spacing": spacing}
    check(Dataset((9, 9, 9), {}))
    check(Dataset((9, 9, 9), properties), preprocessor_name="MyPreprocessor")
    empty = Dataset((9, 9, 9), properties)
    empty.identifiers = []
    check(empty)


# other folds


@pytest.fixture
def model(tmp_path, monkeypatch):
    """The model folder of a training that has a fold."""
    workspace = Workspace(tmp_path)
    for name, value in workspace.folders.items():
        monkeypatch.setenv(name, value)
    plans = plans_of()
    folder = workspace.results / plans["dataset_name"] / f"E2ENetTrainer__{plans['plans_name']}__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_best.pth").touch()
    (folder / "plans.json").write_text(json.dumps(plans))
    return SimpleNamespace(folder=folder, plans=plans)


def other_folds(plans, fold, **changes):
    check_other_folds(E2ENetTrainer, {**plans, **changes}, "3d_fullres", fold)


def changed(plans, **arch_kwargs):
    plans = json.loads(json.dumps(plans))
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(arch_kwargs)
    return plans


def test_folds_of_one_network_go_together(model):
    other_folds(model.plans, 1)
    other_folds(changed(model.plans, sparsity=0.8), 1)  # the default, said


def test_a_fold_of_another_network_is_refused(model):
    with pytest.raises(ConfigurationError, match=r"another network \(base_features 4; now base_features 8\)"):
        other_folds(changed(model.plans, base_features=8), 1)
    with pytest.raises(ConfigurationError, match=r"sparsity 0.8; now sparsity 0.9"):
        other_folds(changed(model.plans, sparsity=0.9), "all")


def test_a_fold_that_is_trained_anew_replaces_its_own(model):
    other_folds(changed(model.plans, base_features=8), 0)
    with pytest.raises(ConfigurationError):
        other_folds(changed(model.plans, base_features=8), 0, continue_training=True)


def test_a_folder_without_checkpoints_hinders_nobody(model):
    (model.folder / "fold_0" / "checkpoint_best.pth").unlink()
    other_folds(changed(model.plans, base_features=8), 1)


@pytest.mark.parametrize("content", ["", "{", '{"configurations": {}}'])
def test_plans_that_cannot_be_read_are_named(model, content):
    (model.folder / "plans.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"plans\.json, which says .* cannot be read"):
        other_folds(model.plans, 1)


def test_shapes_are_rounded_as_nnunet_rounds_them():
    properties = {"shape_after_cropping_and_before_resampling": (7, 7, 7), "spacing": [1.5, 1.5, 1.5]}
    expected = tuple(int(np.round(7 * 1.5)) for _ in range(3))
    assert expected[0] != math.ceil(7 * 1.5) or expected[0] != math.floor(7 * 1.5)
    check(Dataset(expected, properties), spacing=[1.0, 1.0, 1.0])


def test_rates_are_nnunets_poly_unless_a_method_says_otherwise():
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    from nnunet_ext.trainers.resumable import ResumableTrainer

    trainer = SimpleNamespace(initial_lr=0.02)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    schedule = PolyLRScheduler(optimizer, 0.02, 10)
    for epoch in (0, 3, 9):
        schedule.step(epoch)
        expected = {"learning rate": pytest.approx(optimizer.param_groups[0]["lr"])}
        assert ResumableTrainer.rates_at(trainer, epoch, 10) == expected
    assert ResumableTrainer.rates_at(trainer, 12, 10) == {"learning rate": 0.0}
