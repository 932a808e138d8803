"""What only a look at the folders tells: data that were preprocessed for other plans, folds of another network."""

import json
import os
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json


def check_patch(plans: PlansManager, configuration: ConfigurationManager, name: str) -> None:
    """The patch of the training must be that of the plans, from which prediction builds network and tiles.

    Raises:
        ConfigurationError: a subclass changed the patch of its own copy.
    """
    stored = PlansManager(plans.plans).get_configuration(name)  # a manager gives its one copy to everybody
    planned, ours = list(stored.patch_size), list(configuration.patch_size)
    if planned != ours:
        value = json.dumps(ours, separators=(",", ":"))
        raise ConfigurationError(
            f"The trainer changed the patch to {ours}, but the plans that are stored with the model say {planned}, and "
            f"prediction follows those. Change the plans instead: nnunet_ext plan ... --set patch_size={value}."
        )


def check_preprocessed(dataset: Any, plans: PlansManager, configuration: ConfigurationManager, name: str) -> None:
    """Compares one preprocessed case with what nnU-Net's default preprocessor makes of it with these plans.

    Plans that were moved to another data set, or edited, can point at data of another spacing; a training on them
    looks well, and predicts on images of another size.

    Args:
        dataset: nnU-Net's, of the folder that the training reads.

    Raises:
        ConfigurationError: the case has another shape.
    """
    if configuration.preprocessor_name != "DefaultPreprocessor" or not dataset.identifiers:
        return
    case = dataset.identifiers[0]
    data, *_, properties = dataset.load_case(case)
    cropped = properties.get("shape_after_cropping_and_before_resampling")
    if cropped is None or "spacing" not in properties:
        return
    original = [properties["spacing"][axis] for axis in plans.transpose_forward]
    target = list(configuration.spacing)
    target = original[: len(original) - len(target)] + target  # 2d configurations leave the slices where they are
    expected = [int(n) for n in compute_new_shape(cropped, original, target)]
    if list(data.shape[1:]) != expected:
        raise ConfigurationError(
            f"{case} in {configuration.data_identifier} was preprocessed to {list(data.shape[1:])} voxels, but with "
            f"{plans.plans_name}, {name}, it has {expected}: these data were made for other plans. Preprocess for "
            f"these under another data_identifier (nnUNetv2_move_plans_between_datasets ... -tp NEWNAME, or plan "
            f"anew)."
        )


def check_other_folds(trainer: Any, plans: dict[str, Any], configuration: str, fold: int | str) -> None:
    """All folds of a model folder must be of one network, because prediction builds one for all.

    Args:
        trainer: the class, which says the whole arch_kwargs of a configuration.
        plans: of the training; `continue_training` in it says that it goes on, else it replaces what its fold has.

    Raises:
        ConfigurationError: a fold was trained with other arch_kwargs, or the folder's plans cannot be read.
    """
    names = (trainer.__name__, str(plans["plans_name"]), configuration)
    folder = os.path.join(str(nnUNet_results), plans["dataset_name"], "__".join(names))
    path = os.path.join(folder, "plans.json")
    own = None if plans.get("continue_training") else f"fold_{fold}"
    checkpoints = Path(folder).glob("fold_*/checkpoint_*.pth")
    if not os.path.isfile(path) or all(checkpoint.parent.name == own for checkpoint in checkpoints):
        return
    ours = trainer.whole_arch_kwargs(PlansManager(plans).get_configuration(configuration))
    try:
        theirs = trainer.whole_arch_kwargs(PlansManager(read_json(path)).get_configuration(configuration))
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise ConfigurationError(
            f"{path}, which says of which network the folds in that folder are, cannot be read ({error}). Bring it "
            f"back, or move the folder away."
        ) from error
    differ = [key for key in sorted({*ours, *theirs}) if not _same(ours.get(key), theirs.get(key))]
    if differ:
        there, here = ({key: values.get(key) for key in differ} for values in (theirs, ours))
        raise ConfigurationError(
            f"{folder} holds folds of another network ({_short(there)}; now {_short(here)}), and prediction needs one "
            f"network for all folds. Give the new plans another name (nnunet_ext plan --name), or move that folder "
            f"away."
        )


def _same(a: Any, b: Any) -> bool:
    return json.dumps(a) == json.dumps(b)  # a tuple is a list there


def _short(values: dict[str, Any]) -> str:
    text = ", ".join(f"{key} {value}" for key, value in values.items())
    return text if len(text) <= 120 else f"{text[:117]}..."
