"""A bad study ends in a sentence before any job; a good one says what is trained, with which plans and schedule."""

import json
import subprocess
import sys
import textwrap

import pytest
from end_to_end.stock import make_dataset, stock_plans

from nnunet_ext.cli import main as cli
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import METHODS
from nnunet_ext.planning.derive import derive_plans
from nnunet_ext.studies.checks import check_study, stock_lengths, work_device
from nnunet_ext.studies.launch import check_snakemake
from nnunet_ext.studies.layout import Layout
from nnunet_ext.studies.study import read_study

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
DATASET = "Dataset007_Tiny"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """nnU-Net's three folders with a raw data set that nothing was made of yet."""
    from end_to_end.stock import Workspace

    workspace = Workspace(tmp_path_factory.mktemp("data"))
    make_dataset(workspace, cases=5, tests=1, size=(8, 12, 12))
    return workspace


@pytest.fixture
def place(data, tmp_path, monkeypatch):
    """A folder for a study, with the data set, and preprocessed and results of its own."""
    for name in ("preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_raw", str(data.raw))
    return tmp_path


def write(folder, text, name="study.yaml"):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def one(entry, more=""):
    """A study of one entry, in YAML's short form."""
    return f"dataset: 7\ndevice: cpu\n{more}\nmethods: [{entry}]\n"


def planned(folder):
    """The data set as planned by nnU-Net and E2ENetPlanner, without preprocessing."""
    preprocessed = folder / "preprocessed" / DATASET
    preprocessed.mkdir()
    dataset_json = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    stock = stock_plans("nnUNetPlans", STRIDES)
    ours = derive_plans(stock, dataset_json, METHODS["e2enet"], name="E2ENetPlans", configurations=["3d_fullres"])
    for name, content in (("dataset", dataset_json), ("nnUNetPlans", stock), ("E2ENetPlans", ours)):
        (preprocessed / f"{name}.json").write_text(json.dumps(content))
    return preprocessed


# what the file alone tells

E2E = "{name: a, method: e2enet}"
BAD_FILES = {
    "no YAML": ("dataset: [7", "is not valid YAML: line 1: expected ',' or ']'"),
    "a list": ("- 7", "must hold keys and values, at least 'dataset' and 'methods'"),
    "an object": (
        "dataset: !!python/object:os.system {}",
        "is not valid YAML: line 1: could not determine a constructor",
    ),
    "a key twice": ("dataset: 7\nmethods: []\ndataset: 8", "the key 'dataset' is given twice"),
    "unknown key": (one(E2E, "fold: 0"), "Unknown key: fold. Known: baseline, configuration, dataset, device"),
    "no data set": ("methods: [{name: a, method: e2enet}]", "'dataset' is missing"),
    "no methods": ("dataset: 7", "'methods' is missing"),
    "a method that is no entry": (one("e2enet"), "Entry 1 of 'methods' must hold keys and values, found 'e2enet'"),
    "an entry without a name": (one("{method: e2enet}"), "Entry 1 of 'methods' needs a 'name'"),
    "a name that is none": (one("{name: a__b, method: e2enet}"), "'a__b': A name has letters, digits"),
    "the name of the choice": (one("{name: best, method: e2enet}"), "is not 'best'"),
    "two entries of one name": (one(f"{E2E}, {{name: A, method: dints}}"), "Two entries are called 'a'"),
    "one model twice": (one(f"{E2E}, {{name: b, method: e2enet}}"), "a and b are the same model, E2ENetTrainer__E2E"),
    "unknown method": (
        one("{name: a, method: unet}"),
        "'a': Unknown method 'unet'. Known: dints, dints_search, e2enet",
    ),
    "neither method nor trainer": (one("{name: a}"), "'a': Give 'method' or 'preset' for a method of ours"),
    "both": (
        one("{name: a, method: e2enet, trainer: nnUNetTrainer}"),
        "Give either 'method' (or 'preset'), or 'trainer'",
    ),
    "presets of two": (one("{name: a, preset: [e2enet/s90, dints/x]}"), "An entry has one method, found dints, e2enet"),
    "a preset of nobody": (one("{name: a, preset: s90}"), "'preset' needs its method: METHOD/s90"),
    "a search": (one("{name: a, method: dints_search}"), "DiNTS search trains no model that predicts. Search first"),
    "a cascade": (one(E2E, "configuration: 3d_cascade_fullres"), "needs predictions of another configuration"),
    "unknown key of an entry": (one("{name: a, method: e2enet, epochs: 3}"), "Unknown key of an entry: epochs. Known:"),
    "set without values": (one("{name: a, method: e2enet, set: 3}"), "'set' must hold options and their values"),
    "a file that is not there": (
        one("{name: a, method: med_tuning, set: {weights_file: vit.safetensors}}"),
        "vit.safetensors does not exist. Paths are those beside the study file",
    ),
    "set with a date": (
        one("{name: a, method: e2enet, set: {x: 2026-01-01}}"),
        "'set' must hold numbers, texts, lists",
    ),
    "fold all": (one(E2E, "folds: all"), "'folds' must be a list of numbers from 0, found 'all'"),
    "a fold below 0": (one(E2E, "folds: [-1]"), "found -1"),
    "a fold twice": (one(E2E, "folds: [0, 0]"), "'folds' must name each fold once"),
    "unknown device": (one(E2E).replace("cpu", "tpu"), "'device' must be auto, cpu, cuda or mps, found 'tpu'"),
    "unknown schedule": (
        one(E2E, "schedule: {epoch: 3}"),
        "Unknown key of 'schedule': epoch. Known: epochs, iterations",
    ),
    "no epoch": (one(E2E, "schedule: {epochs: 0}"), "'epochs' of 'schedule' must be a positive integer, found 0"),
    "a schedule that nnU-Net cannot have": (
        one("{name: a, trainer: nnUNetTrainer}", "schedule: {iterations: 100}"),
        "'a': nnU-Net's own trainer has 250 iterations an epoch in its class, and this study asks for 100",
    ),
    "a schedule for a stranger's trainer": (
        one("{name: a, trainer: MyTrainer}", "schedule: {epochs: 5}"),
        "The schedule of MyTrainer stands in its class",
    ),
    "unknown baseline": (one(E2E, "baseline: b"), "'baseline' is 'b', which is none of the methods: a"),
    "unknown measure": (one(E2E, "measures: [dice, hausdorff]"), "'measures' must be a list of dice, hd95 or nsd"),
    "a tolerance below 0": (one(E2E, "tolerance: -1"), "'tolerance' must be mm of at least 0"),
    "ensemble maybe": (one(E2E, "ensemble: maybe"), "'ensemble' must be true or false"),
    "test without images": (one(E2E, "test: {labels: x}"), "'test' must hold 'images'"),
    "no part": (one(E2E, "test: {images: x, parts: 0}"), "'parts' of 'test' must be a positive integer, found 0"),
    "unknown resource": (
        one(E2E, "resources: {ram: 3}"),
        "Unknown key of 'resources': ram. Known: mem_mb, runtime, threads",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_end_in_a_sentence(name, tmp_path):
    text, expected = BAD_FILES[name]
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as error:
        read_study(path)
    assert str(error.value).startswith(str(path)) and expected in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match="is not a file. Give a study file"):
        read_study(tmp_path / "study.yaml")


# what only the machine tells


def refusal(place, text):
    study = read_study(write(place, text))
    with pytest.raises(ConfigurationError) as error:
        check_study(Layout(study, place / "work", "cpu"))
    return str(error.value)


BAD_STUDIES = {
    "missing data set": (one(E2E).replace("7", "8"), "Data set '8' is none of"),
    "fold out of range": (one(E2E, "folds: [0, 5]"), "fold 5 is out of range: Dataset007_Tiny has the folds 0 to 4"),
    "missing test images": (one(E2E, "test: {images: missing}"), "missing are no folder"),
    "no test images": (one(E2E, "test: {images: preprocessed}"), "holds no image that ends in _0000.nii.gz"),
    "unknown preset": (one("{name: a, preset: e2enet/s91}"), "'a': Unknown preset of E2ENet: s91. Known: "),
    "unknown option": (one("{name: a, method: e2enet, set: {x: 1}}"), "'a': Unknown setting of E2ENet: x. Known: "),
    "an option of another type": (
        one("{name: a, method: e2enet, set: {num_epochs: many}}"),
        "'a': Option 'num_epochs' must be int, found 'many'",
    ),
    "a setting of nnU-Net's": (
        one("{name: a, trainer: nnUNetTrainer, set: {sparsity: 1}}"),
        "'a': Unknown setting of nnUNetTrainer: sparsity. Known: batch_size, patch_size, resampling",
    ),
    "2d with a 3D method": (one(E2E, "configuration: 2d"), "E2ENet is a 3D method and cannot train 2d"),
    "unknown configuration": (one(E2E, "configuration: 4d"), "nnU-Net plans no configuration '4d'"),
    "unknown plans": (one("{name: a, trainer: nnUNetTrainer, plans: My}"), "There are no plans My in"),
    "unknown trainer": (one("{name: a, trainer: MyTrainer}"), "'a': nnU-Net finds no trainer MyTrainer"),
    "a length that nnU-Net has not": (
        one("{name: a, trainer: nnUNetTrainer}", "schedule: {epochs: 7}"),
        "nnU-Net has no trainer nnUNetTrainer_7epochs: it has variants of its trainer with 1, 5, 10, 20, 50, 100, ",
    ),
}


@pytest.mark.parametrize("name", BAD_STUDIES)
def test_bad_studies_end_in_a_sentence(name, place):
    text, expected = BAD_STUDIES[name]
    assert expected in refusal(place, text)


def test_test_images_and_their_labels(place, data):
    raw = data.raw / DATASET
    text = one(E2E, f"test: {{images: {raw / 'imagesTs'}, parts: 2}}")
    assert "'parts' is 2, and there are 1 test cases" in refusal(place, text)
    text = one(E2E, f"test: {{images: {raw / 'imagesTs'}, labels: {raw / 'labelsTr'}}}")
    assert "labelsTr has no case_005.nii.gz, the label of a test image" in refusal(place, text)


def test_a_configuration_that_the_plans_have_not(place):
    planned(place)
    assert "The plans nnUNetPlans have no configuration '3d_lowres'. They have: 2d, 3d_fullres" in refusal(
        place, one("{name: a, trainer: nnUNetTrainer}", "configuration: 3d_lowres")
    )


def test_folds_are_those_of_the_data_sets_split(place):
    folder = planned(place)
    (folder / "splits_final.json").write_text(json.dumps([{"train": [], "val": []}] * 2))
    assert "has the folds 0 to 1" in refusal(place, one(E2E, "folds: [2]"))


def test_plans_of_another_definition_are_not_used(place):
    """The options of an entry were changed after its plans were derived."""
    planned(place)
    study = read_study(write(place, one("{name: a, method: e2enet, set: {sparsity: 0.5}}")))
    layout = Layout(study, place / "work", "cpu")
    check_study(layout)
    assert cli.main(layout.derive_words(study.entries[0])[1:]) == 0
    check_study(layout)  # they are what the study says
    file = layout.plans_file("E2ENetPlans_a")
    plans = json.loads(file.read_text())
    del plans["configurations"]["3d_fullres"]["nnunet_ext"]["train_bfloat16"]  # as of before there was this option
    plans["configurations"].pop("2d", None)
    file.write_text(json.dumps(plans))
    check_study(layout)
    plans["configurations"]["3d_fullres"]["nnunet_ext"]["option"] = 1
    file.write_text(json.dumps(plans))
    with pytest.raises(ConfigurationError, match="made for other options"):
        check_study(layout)
    text = refusal(place, one("{name: a, method: e2enet, set: {sparsity: 0.7}}"))
    assert "E2ENetPlans_a.json was made for other options than the study now has" in text
    assert "--set sparsity=0.7 --overwrite" in text


def test_a_network_that_cannot_be_built_is_refused_before(place):
    planned(place)
    assert "'a': Configuration '3d_fullres'" in refusal(
        place, one("{name: a, method: e2enet, set: {kernel_size: [2, 2, 2]}}")
    )


def test_a_gpu_where_there_is_none(place, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = write(place, one(E2E).replace("cpu", "cuda"))
    assert cli.main(["run", str(path)]) == 1
    assert "torch finds no CUDA GPU" in capsys.readouterr().err
    assert sorted(p.name for p in place.iterdir()) == ["preprocessed", "results", "study.yaml"]


def test_the_device_of_other_machines_must_be_said():
    with pytest.raises(ConfigurationError, match="Say 'device: cuda' or 'device: cpu'"):
        work_device("auto", "slurm", lambda asked: pytest.fail("asked of this machine"))
    assert work_device("cuda", "slurm", lambda asked: pytest.fail("asked of this machine")) == "cuda"


def test_an_unknown_profile_is_refused():
    with pytest.raises(ConfigurationError, match="pip install snakemake-executor-plugin-cloudy"):
        check_snakemake("cloudy")


def test_without_snakemake_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("nnunet_ext.studies.launch.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"nnunet-ext\[workflow\]"):
        check_snakemake(None)


# good ones


def entries(tmp_path, text):
    return read_study(write(tmp_path, text)).entries


def test_the_schedule_goes_into_our_plans_and_names_nnunets_trainer(tmp_path):
    text = """
    dataset: Tiny
    schedule: {epochs: 10, iterations: 250}
    methods:
      - {name: unet, trainer: nnUNetTrainer}
      - {name: resenc, trainer: nnUNetTrainer, plans: nnUNetResEncUNetMPlans}
      - {name: sparse, preset: e2enet/s90, set: {num_epochs: 3}}
      - {name: theirs, trainer: MyTrainer, schedule: own}
      - {name: stock_plans, trainer: E2ENetTrainer, plans: nnUNetPlans}
      - {name: as_planned, method: med_danet, schedule: own}
    """
    unet, resenc, sparse, theirs, on_stock, own = entries(tmp_path, text)
    assert (unet.trainer, unet.plans, unet.planner) == ("nnUNetTrainer_10epochs", "nnUNetPlans", "ExperimentPlanner")
    assert (resenc.plans, resenc.planner) == ("nnUNetResEncUNetMPlans", "nnUNetPlannerResEncM")
    assert (sparse.trainer, sparse.source, sparse.plans) == ("E2ENetTrainer", "E2ENetPlans", "E2ENetPlans_sparse")
    assert sparse.settings == {"num_epochs": 3, "num_iterations_per_epoch": 250} and sparse.presets == ("s90",)
    assert (theirs.trainer, theirs.plans, theirs.is_derived) == ("MyTrainer", "nnUNetPlans", False)
    assert (on_stock.method.name, on_stock.plans) == ("e2enet", "nnUNetPlans_stock_plans")
    assert (own.plans, own.planner, own.is_derived) == ("MedDANetPlans", "MedDANetPlanner", False)


@pytest.mark.parametrize("epochs", [1, 5, 1000])
def test_a_length_of_nnunets_trainer_is_found(epochs, place):
    path = write(place, one("{name: a, trainer: nnUNetTrainer}", f"schedule: {{epochs: {epochs}}}"))
    check_study(Layout(read_study(path), place / "work", "cpu"))
    assert epochs in stock_lengths()


def test_nnunets_plans_get_another_batch(place):
    folder = planned(place)
    study = read_study(write(place, one("{name: a, trainer: nnUNetTrainer, set: {batch_size: 7}}")))
    layout = Layout(study, place / "work", "cpu")
    check_study(layout)
    assert cli.main(layout.derive_words(study.entries[0])[1:]) == 0
    assert json.loads((folder / "nnUNetPlans_a.json").read_text())["configurations"]["3d_fullres"]["batch_size"] == 7
    check_study(layout)


def test_a_study_is_read_without_torch(tmp_path):
    entries = ", ".join(f"{{name: {name}, method: {name}}}" for name, method in METHODS.items() if method.predicts)
    study = write(tmp_path, one(entries))
    code = (
        "import sys, pathlib; from nnunet_ext.studies.study import read_study; "
        f"read_study(pathlib.Path({str(study)!r})); print(sorted({{'torch', 'nnunetv2'}} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_paths_are_those_beside_the_study(tmp_path):
    study = read_study(write(tmp_path, one(E2E, "test: {images: images, labels: labels}")))
    assert (study.test.images, study.test.labels) == (tmp_path / "images", tmp_path / "labels")
    (tmp_path / "vit.safetensors").touch()
    study = read_study(write(tmp_path, one("{name: a, method: med_tuning, set: {weights_file: vit.safetensors}}")))
    assert study.entries[0].settings == {"weights_file": str(tmp_path / "vit.safetensors")}


def test_entries_that_share_settings_by_yamls_merge_keys(place):
    merged = """
        dataset: 7
        device: cpu
        methods:
          - {name: a, method: e2enet, set: &shared {batch_size: 2, sparsity: 0.9}}
          - {name: b, method: e2enet, set: {<<: *shared, sparsity: 0.5}}
    """
    study = read_study(write(place, merged))
    assert [dict(entry.settings) for entry in study.entries] == [
        {"batch_size": 2, "sparsity": 0.9}, {"batch_size": 2, "sparsity": 0.5},
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match="the key 'batch_size' is given twice"):
        read_study(write(place, merged.replace("sparsity: 0.5", "batch_size: 3, batch_size: 4")))
