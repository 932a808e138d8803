"""Architecture codes: what is refused, and files that come and go unchanged."""

import json
import os

import numpy as np
import pytest
import torch
from dints.small import random_code

from nnunet_ext.dints.architecture_code import CVPR_CODE, ArchitectureCode
from nnunet_ext.dints.code_file import CodeFile, code_settings, digest, read_code
from nnunet_ext.dints.search_space import edges
from nnunet_ext.errors import ConfigurationError


def lists(code):
    settings = code.settings()
    return settings["arch_code_a"], settings["arch_code_c"]


def without_an_edge(a, c):
    a[3] = [0] * 10


def infeasible(a, c):
    a[4] = [1] + [0] * 9  # arrives at scale 0 only


def operation_5(a, c):
    c[2][1] = 5


def negative(a, c):
    c[2][1] = -1


def two(a, c):
    a[0][0] = 2


def nine_edges(a, c):
    for row in (*a, *c):
        row.pop()


def ragged(a, c):
    a[5].pop()


def fewer_operations(a, c):
    c.pop()


def fractions(a, c):
    c[0][0] = 0.5


def texts(a, c):
    a[0] = "1111111111"


BAD = {
    without_an_edge: "Layer 4 .* has no active edge",
    infeasible: r"infeasible: the edges of layer 4 arrive at scales \[0, 1, 2, 3\], but those of layer 5 leave",
    operation_5: "operations 0 to 4; ",
    negative: "operations 0 to 4; ",
    two: "0 and 1 only; layer 1",
    nine_edges: "9",
    ragged: "layers",
    fewer_operations: "layers",
    fractions: "whole numbers, found '0.5'",
    texts: "a list of layers",
}


@pytest.mark.parametrize("spoil", BAD)
def test_bad_codes_are_refused(spoil):
    a, c = lists(CVPR_CODE)
    spoil(a, c)
    with pytest.raises(ConfigurationError, match=BAD[spoil]):
        ArchitectureCode.of(a, c)


@pytest.mark.parametrize("spoil", BAD)
def test_bad_code_files_are_refused_with_their_name(spoil, tmp_path):
    content = CodeFile(CVPR_CODE).content()
    spoil(content["arch_code_a"], content["arch_code_c"])
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="bad.json holds no usable architecture code"):
        read_code(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_depths": 3}, "'num_depths' is 3, which has 7 edges, but 'edges' names 10"),
        ({"num_depths": 3, "edges": [list(e) for e in edges(3)]}, "12 layers of 7 edges .*found 12 of \\[10\\]"),
        ({"num_depths": 7}, "2 to 5 scales, found 7"),
        ({"num_layers": 11}, "must have 11 layers"),
        ({"version": 2}, "version is 2; this release reads version 1"),
        ({"format": "other"}, "'format' must be 'dints-arch-code'"),
        ({"ops": ["skip", "conv_9x9x9"]}, "'ops' names"),
        ({"spatial_dims": 4}, "'spatial_dims' must be 2 or 3"),
        ({"arch_code_a": None}, "arch_code_a must be a list"),
        ({"arch_code_a": [[float("inf")] * 10]}, "arch_code_a must be .* found 'inf'"),
        ({"arch_code_c": 7}, "arch_code_c must be a list of layers"),
        ({"edges": None}, "edges must be a list"),
        ({"edges": [["a", "b"]]}, "edges must be a list"),
        ({"ops": None}, "'ops' names None"),
        ({"ops": 3}, "'ops' names 3"),
        ({"ops": [["skip"]]}, "'ops' names"),
        ({"ops": []}, "'ops' names"),
        ({"num_depths": [4]}, "'num_depths' must be a whole number"),
        ({"num_depths": {}}, "'num_depths' must be a whole number"),
        ({"num_depths": True}, "'num_depths' must be a whole number"),
        ({"num_layers": "12"}, "'num_layers' must be a whole number"),
        ({"spatial_dims": [3]}, "'spatial_dims' must be 2 or 3"),
        ({"use_downsample": 1}, "'use_downsample' true or false"),
        ({"meta": [1]}, "'meta' must be an object"),
        ({"axes": "yxz"}, "'axes' must be 'zyx' .* or 'xyz', found 'yxz'"),
    ],
)
def test_files_that_contradict_themselves_are_refused(change, message, tmp_path):
    (tmp_path / "code.json").write_text(json.dumps({**CodeFile(CVPR_CODE).content(), **change}))
    with pytest.raises(ConfigurationError, match=message):
        read_code(tmp_path / "code.json")


_WRONG = (None, True, -1, 7, 0.5, float("inf"), float("nan"), "x", [], [None], [[]], [[1, 2]], {}, {"a": 1})


@pytest.mark.parametrize("key", CodeFile(CVPR_CODE).content())
def test_no_value_of_a_file_gives_a_traceback(key, tmp_path):
    """Whatever stands under a key, the file is read or refused in words."""
    for value in _WRONG:
        (tmp_path / "code.json").write_text(json.dumps({**CodeFile(CVPR_CODE).content(), key: value}))
        try:
            assert read_code(tmp_path / "code.json").code == CVPR_CODE
        except ConfigurationError as error:
            assert "code.json" in str(error)
    for whole in ("null", "[]", "3", '"text"', "[" * 100_000):
        (tmp_path / "code.json").write_text(whole)
        with pytest.raises(ConfigurationError, match="code.json"):
            read_code(tmp_path / "code.json")


def test_files_of_before_axes_were_written_down_are_read(tmp_path):
    content = CodeFile(CVPR_CODE).content()
    del content["axes"]
    (tmp_path / "code.json").write_text(json.dumps(content))
    assert read_code(tmp_path / "code.json").code == CVPR_CODE


def test_reversing_the_axes_twice_changes_nothing():
    other = CVPR_CODE.with_axes_reversed()
    assert other != CVPR_CODE and other.active == CVPR_CODE.active
    changed = sum(a != b and on for rows in zip(CVPR_CODE.active, CVPR_CODE.operations, other.operations, strict=True)
                  for on, a, b in zip(*rows, strict=True))  # fmt: skip
    assert changed == 28
    assert other.with_axes_reversed() == CVPR_CODE


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match="There is no architecture code .*none.json"):
        read_code(tmp_path / "none.json")
    (tmp_path / "half.json").write_text(json.dumps(CodeFile(CVPR_CODE).content())[:500])
    with pytest.raises(ConfigurationError, match="half.json cannot be read"):
        read_code(tmp_path / "half.json")


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_a_file_gives_back_the_code(depth, tmp_path):
    code = random_code(depth, layers=5, seed=depth)
    CodeFile(code, use_downsample=False, meta={"sigma": 0.5}).write(tmp_path / "code.json")
    found = read_code(tmp_path / "code.json")
    assert (found.code, found.use_downsample, found.meta) == (code, False, {"sigma": 0.5})
    origin = {"code": digest(code), "sigma": 0.5}
    settings = {**code.settings(), "use_downsample": False, "code_origin": origin}
    assert code_settings(tmp_path / "code.json") == settings


def test_another_order_of_edges_and_operations_means_the_same_code(tmp_path):
    content = CodeFile(CVPR_CODE).content()
    order, names = [9, 1, 0, 8, 2, 3, 7, 4, 5, 6], ["p3d_1x3x3", "skip", "p3d_3x3x1", "conv_3x3x3", "p3d_3x1x3"]
    before = content["ops"]
    content["edges"] = [content["edges"][e] for e in order]
    content["arch_code_a"] = [[row[e] for e in order] for row in content["arch_code_a"]]
    content["arch_code_c"] = [[names.index(before[row[e]]) for e in order] for row in content["arch_code_c"]]
    content["ops"] = names
    (tmp_path / "code.json").write_text(json.dumps(content))
    assert read_code(tmp_path / "code.json").code == CVPR_CODE


# files of the reference


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["arch_code_", "code_"])
def test_files_of_the_reference_are_read(prefix, legacy, tmp_path):
    a, c = lists(CVPR_CODE)
    content = {
        "node_a": np.array(CVPR_CODE.nodes()),
        f"{prefix}a": np.array(a, np.float64),
        f"{prefix}c": np.array(c, np.int64),
        f"{prefix}a_max": np.array(a, np.float64),
        "best_dsc": np.float64(0.5),
        "iter_num": 18590,
    }
    path = tmp_path / "arch_code.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = read_code(path)
    assert found.code == CVPR_CODE.with_axes_reversed()  # theirs are x y z
    assert found.meta == {"source": "reference implementation, arch_code.pth"}


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.uint8, np.float32, bool])
def test_arrays_of_all_kinds_of_numbers_are_read(kind, tmp_path):
    rows = np.ones((2, 10))
    torch.save({"code_a": rows.astype(kind), "code_c": torch.ones(2, 10)}, tmp_path / "code.pt")
    assert read_code(tmp_path / "code.pt").code.num_edges == 20


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(legacy, tmp_path):
    a, c = lists(CVPR_CODE)
    path, made = tmp_path / "evil.pt", tmp_path / "made"
    content = {"arch_code_a": np.array(a), "arch_code_c": np.array(c), "extra": Evil(made)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConfigurationError, match="holds more than arrays and numbers") as refused:
        read_code(path)
    assert "weights_only" not in str(refused.value)
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists(), "the file was harmless, and this test showed nothing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": np.zeros(3)}, "it has none of arch_code_a, code_a; its keys are weights"),
        ([1, 2], "holds a dict"),
        ({"arch_code_a": np.ones((12, 10)), "arch_code_c": np.full((12, 10), 7)}, "operations 0 to 4"),
    ],
)
def test_other_pickles_are_refused_in_words(content, message, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ConfigurationError, match=message):
        read_code(tmp_path / "other.pt")


def test_a_truncated_pickle_is_refused(tmp_path):
    path = tmp_path / "half.pt"
    torch.save({"arch_code_a": np.ones((12, 10))}, path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ConfigurationError, match="half.pt"):
        read_code(path)
