"""Measures against numbers worked out by hand, against MONAI, and against slow versions from the formulas."""

import math

import numpy as np
import pytest
from scipy import ndimage

from nnunet_ext.challenges import lesions
from nnunet_ext.challenges.catalogue import get_challenge
from nnunet_ext.challenges.facts import Conventions
from nnunet_ext.challenges.metrics import MEASURES, Pair, measure, structure_scores
from nnunet_ext.challenges.surfaces import boundary, cells, element_areas, union_box
from nnunet_ext.errors import ConfigurationError

ALL = tuple(MEASURES)
SPACING = (1.0, 2.0, 4.0)


def pair(a, b, spacing=SPACING, tolerance=1.0, surface="voxels", **conventions):
    box = union_box(a, b)
    return Pair(a[box], b[box], spacing, a.shape, tolerance, Conventions(surface=surface, **conventions))


def cube(shape, *slices):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*s) for s in slices)] = True
    return mask


class TestByHand:
    def test_two_voxels_on_anisotropic_axes(self):
        """One voxel against another: one voxel apart on the last axis, 4 mm."""
        a, b = cube((5, 5, 5), (2, 3), (2, 3), (2, 3)), cube((5, 5, 5), (2, 3), (2, 3), (3, 4))
        values = measure(pair(a, b), ALL)
        assert values["dice"] == 0
        assert values["hd95"] == values["hausdorff"] == values["assd"] == 4
        assert values["nsd"] == 0
        assert measure(pair(a, b, tolerance=4.0), ["nsd"]) == {"nsd": 1}
        assert values["sensitivity"] == 0
        assert values["specificity"] == 123 / 124

    @pytest.mark.parametrize(("axis", "distance"), [(0, 1), (1, 2), (2, 4)])
    def test_a_cube_shifted_by_one_voxel(self, axis, distance):
        """3x3x3 in 7x7x7, every voxel of it boundary but the middle: 26 voxels each.

        Shifted along an axis, 9 voxels leave at each end. Of the 26 boundary voxels of one cube, the 9 in front are one
        voxel from the other's face; the middle of the layer behind is the other's inner voxel, also one voxel (along
        the shift) from its boundary, or less along a shorter axis; all others lie on the other's boundary or beside it.
        """
        low, high = [(2, 5)] * 3, [(2, 5)] * 3
        high[axis] = (3, 6)
        a, b = cube((7, 7, 7), *low), cube((7, 7, 7), *high)
        values = measure(pair(a, b), ALL)
        assert values["dice"] == 2 * 18 / 54
        assert values["sensitivity"] == 18 / 27
        assert values["specificity"] == (343 - 27 - 9) / (343 - 27)
        assert values["hausdorff"] == distance
        # The 95th percentile of 26 ordered distances lies between the 24th and 25th, which are both the largest.
        assert values["hd95"] == distance
        # 9 voxels at one end, and the middle one of the face behind, whose nearest neighbour lies along the shortest
        # axis (1 mm), or is at the distance of the shift if that is shorter.
        assert values["assd"] == pytest.approx((9 * distance + 1) / 26)
        # Within 1 mm lie all but the nine, or all.
        assert values["nsd"] == (1 if distance == 1 else 17 / 26)

    def test_directed_and_pooled_percentiles_differ(self):
        """A rod of 20 voxels against its first voxel: directed 0 one way, 0 to 19 mm the other."""
        a, b = cube((20, 1, 1), (0, 20)), cube((20, 1, 1), (0, 1))
        spacing = (1.0, 1.0, 1.0)
        assert measure(pair(a, b, spacing), ["hd95"])["hd95"] == pytest.approx(0.95 * 19)
        pooled = measure(pair(a, b, spacing, hausdorff="pooled"), ["hd95"])["hd95"]
        assert pooled == pytest.approx(np.percentile([0, *range(20)], 95)) != pytest.approx(0.95 * 19)

    def test_the_edge_of_the_image_is_a_boundary(self):
        assert boundary(np.ones((3, 3, 3), bool)).sum() == 26
        assert boundary(np.ones((3, 3, 3), bool), connectivity=2).sum() == 26
        assert boundary(np.ones((1, 5), bool)).all()

    def test_edge_neighbours_make_a_thicker_boundary(self):
        mask = np.ones((5, 5, 5), bool)
        mask[0, 0, 2] = False
        assert not boundary(mask)[1, 1, 2]
        assert boundary(mask, connectivity=2)[1, 1, 2]


class TestElements:
    def test_one_voxel_is_an_octahedron(self):
        """Eight cells have one corner of it, each with a triangle through the middles of three edges."""
        mask, spacing = np.ones((1, 1, 1), bool), (1.0, 2.0, 4.0)
        corner = np.array([0.5, 1.0, 2.0])  # half edges
        area = np.linalg.norm(np.cross(corner * [-1, 1, 0], corner * [-1, 0, 1])) / 2
        assert element_areas(spacing)[cells(mask)].sum() == pytest.approx(8 * area)

    def test_a_plane_has_its_area(self):
        mask = np.ones((9, 7, 2), bool)
        codes = cells(mask)[2:-2, 2:-2]  # away from the edges
        assert element_areas((1.0, 2.0, 4.0))[codes].sum() == pytest.approx(2 * codes.shape[0] * codes.shape[1] * 1 * 2)

    def test_a_line_in_2d_has_its_length(self):
        codes = cells(np.ones((9, 2), bool))[2:-2]
        assert element_areas((3.0, 0.5))[codes].sum() == pytest.approx(2 * codes.shape[0] * 3)

    def test_a_mask_and_its_complement_have_one_surface(self):
        areas = element_areas((0.7, 1.1, 5.0))
        assert areas == pytest.approx(areas[::-1]) and (areas[1:-1] > 0).all() and areas[0] == areas[255] == 0

    def test_a_shifted_slab(self):
        """Two faces of equal area, each two cells from the other's: HD95 of a slab against one that is thicker."""
        a, b = cube((80, 80, 12), (0, 80), (0, 80), (3, 6)), cube((80, 80, 12), (0, 80), (0, 80), (3, 8))
        values = measure(pair(a, b, (1.0, 1.0, 2.0), tolerance=1.0, surface="elements"), ("hd95", "hausdorff", "nsd"))
        assert values["hd95"] == values["hausdorff"] == 4
        assert 0.5 < values["nsd"] < 0.58  # one of two faces, and the most of the rims

    def test_noise_takes_the_transform_and_gives_the_same(self, monkeypatch):
        from nnunet_ext.challenges import surfaces

        rng = np.random.default_rng(0)
        a, b = (rng.random((12, 13, 9)) > 0.5 for _ in range(2))
        expected = measure(pair(a, b, surface="elements"), ALL)
        monkeypatch.setattr(surfaces, "DENSE", 2)
        assert measure(pair(a, b, surface="elements"), ALL) == pytest.approx(expected)

    def test_nsd_is_none_below_a_dice(self):
        a, b = cube((9, 9, 9), (0, 4)), cube((9, 9, 9), (3, 7))
        for limit, nsd in ((0.2, 1.0), (0.3, 0.0)):  # Dice is 0.25
            assert measure(pair(a, b, tolerance=50.0, nsd_from_dice=limit), ["nsd"]) == {"nsd": nsd}


class TestEmptyMasks:
    empty, full = np.zeros((3, 4, 12), bool), np.ones((3, 4, 12), bool)

    def test_both_empty_is_left_out_or_right(self):
        both = self.empty, self.empty
        assert all(math.isnan(value) for value in measure(pair(*both), ALL).values())
        perfect = measure(pair(*both, both_empty="perfect"), ALL)
        one = ("dice", "nsd", "sensitivity", "specificity")
        assert perfect == {name: 1 if name in one else 0 for name in ALL}

    @pytest.mark.parametrize("swap", [False, True])
    @pytest.mark.parametrize(
        ("convention", "distance"),
        [("nan", math.nan), ("inf", math.inf), ("voxel diagonal", 13.0), ("diagonal", math.hypot(3, 8, 48))],
    )
    def test_one_empty_is_wrong_and_its_distance_a_convention(self, swap, convention, distance):
        masks = (self.full, self.empty) if swap else (self.empty, self.full)
        values = measure(pair(*masks, one_empty_distance=convention), ALL)
        assert values["dice"] == values["nsd"] == values["sensitivity"] == 0
        for name in ("hd95", "hausdorff", "assd"):
            assert values[name] == distance or math.isnan(distance) and math.isnan(values[name])

    def test_the_rules_of_brats(self):
        """Both empty: Dice 1, HD95 0; one empty: Dice 0, HD95 373.1287 for the size of BraTS images."""
        metrics = get_challenge("brats2020").metrics

        def scores(prediction, reference):
            return structure_scores(
                prediction,
                reference,
                (1.0, 1.0, 1.0),
                metrics.structures,
                metrics.measures,
                conventions=metrics.conventions,
            )

        edema, nothing = np.zeros((240, 240, 155), np.uint8), np.zeros((240, 240, 155), np.uint8)
        edema[100:110, 100:110, 70:80] = 2
        alike = scores(edema, edema)
        assert alike["enhancing tumor"] == {"dice": 1, "hd95": 0, "sensitivity": 1, "specificity": 1}
        assert alike["whole tumor"]["dice"] == 1
        with_enhancing = edema.copy()
        with_enhancing[100, 100, 70] = 4
        for one in (scores(with_enhancing, edema), scores(edema, with_enhancing)):
            assert one["enhancing tumor"]["dice"] == one["enhancing tumor"]["sensitivity"] == 0
            assert one["enhancing tumor"]["hd95"] == pytest.approx(373.1287, abs=1e-4)
            assert one["whole tumor"]["dice"] == 1  # edema and enhancing tumor are both part of it
        assert scores(nothing, edema)["whole tumor"]["hd95"] == pytest.approx(373.1287, abs=1e-4)
        left_over = np.where(with_enhancing == 4, 3, with_enhancing).astype(np.uint8)
        assert scores(left_over, with_enhancing)["whole tumor"]["sensitivity"] == 0.999  # 3 counts in no region


def random_masks(number):
    """Smooth blobs or noise, sometimes empty, sometimes touching the edge; prediction, reference, spacing."""
    rng = np.random.default_rng(number)
    shape = tuple(rng.integers(6, 22, 3))
    masks = []
    for _ in range(2):
        field = ndimage.gaussian_filter(rng.normal(size=shape), rng.choice([0.0, 1.0, 2.0]))
        masks.append(field > np.quantile(field, rng.choice([0.5, 0.8, 0.95, 1.0], p=[0.3, 0.4, 0.2, 0.1])))
    if number % 5 == 0:
        masks[0] = np.roll(masks[1], 1, number % 3)  # alike, as predictions are
    return *masks, tuple(rng.uniform(0.5, 4.0, 3))


@pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class:UserWarning")
def test_dice_hd95_and_nsd_are_monais_on_200_random_masks(monkeypatch):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    # In float32, torch takes the rank of a percentile so coarsely that the fifth digit of HD95 changes.
    quantile = torch.quantile
    monkeypatch.setattr(torch, "quantile", lambda values, q: quantile(values.double(), q))
    empty = 0
    for number in range(200):
        prediction, reference, spacing = random_masks(number)
        tolerance = float(np.random.default_rng(number).choice([0.5, 1.0, 3.0]))
        ours = measure(pair(prediction, reference, spacing, tolerance), ("dice", "hd95", "nsd"))
        a, b = (torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (prediction, reference))
        theirs = {
            "dice": metrics.compute_dice(a, b, ignore_empty=False),
            "hd95": metrics.compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=spacing),
            "nsd": metrics.compute_surface_dice(a, b, [tolerance], include_background=True, spacing=spacing),
        }
        elements = measure(pair(prediction, reference, spacing, tolerance, surface="elements"), ("nsd",))
        ours["nsd of elements"] = elements["nsd"]
        theirs["nsd of elements"] = metrics.compute_surface_dice(
            a, b, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
        )
        if not prediction.any() and not reference.any():
            theirs["dice"] = torch.full((1, 1), math.nan)  # MONAI counts this as 1 here, we leave it out
        if prediction.any() != reference.any():
            theirs["hd95"] = torch.full((1, 1), math.nan)  # MONAI has NaN or infinity, by release
        empty += not prediction.any() or not reference.any()
        for name, value in theirs.items():
            # MONAI's distances are float32, whose own rounding of 40 mm is 2e-6: hence relative.
            assert ours[name] == pytest.approx(float(value), rel=1e-6, abs=1e-6, nan_ok=True), (number, name)
    assert 20 < empty < 80  # both kinds were there


def slow_distances(a, b, spacing):
    """All pairs of boundary voxels, by the definition."""

    def surface(mask):
        padded = np.pad(mask, 1)
        points = []
        for index in np.argwhere(mask):
            neighbours = [
                padded[tuple(index + 1 + step)]
                for axis in range(3)
                for step in (np.eye(3, dtype=int)[axis], -np.eye(3, dtype=int)[axis])
            ]
            if not all(neighbours):
                points.append(index * spacing)
        return np.array(points)

    first, second = surface(a), surface(b)
    distance = np.linalg.norm(first[:, None] - second[None], axis=2)
    return distance.min(1), distance.min(0)


@pytest.mark.parametrize("number", range(6))
def test_surface_measures_are_those_of_the_definition(number):
    rng = np.random.default_rng(number)
    a, b = (ndimage.gaussian_filter(rng.normal(size=(9, 8, 7)), 1) > 0.1 for _ in range(2))
    one, two = slow_distances(a, b, SPACING)
    values = measure(pair(a, b, tolerance=2.0), ALL)
    both = np.concatenate([one, two])
    assert values["hausdorff"] == pytest.approx(max(one.max(), two.max()))
    assert values["hd95"] == pytest.approx(max(np.percentile(one, 95), np.percentile(two, 95)))
    assert values["assd"] == pytest.approx(both.mean())
    assert values["nsd"] == pytest.approx((both <= 2.0).mean())


def test_structures_are_scored_as_if_they_were_alone():
    """Cropping to a structure's box changes nothing."""
    rng = np.random.default_rng(0)
    ours, theirs = (rng.integers(0, 4, (12, 13, 14)).astype(np.uint8) for _ in range(2))
    structures = {"one": (1,), "two or three": (2, 3), "absent": (9,)}
    limits = {"one": 1, "two or three": 2, "absent": 1}
    scores = structure_scores(ours, theirs, SPACING, structures, ALL, tolerance=limits)
    turned = structure_scores(  # in memory as files come
        *map(np.asfortranarray, (ours, theirs)), SPACING, structures, ALL, tolerance=limits
    )
    for name, values in structures.items():
        masks = (np.isin(labels, values) for labels in (ours, theirs))
        alone = measure(Pair(*masks, SPACING, ours.shape, 2.0 if name == "two or three" else 1.0), ALL)
        assert scores[name] == pytest.approx(alone, nan_ok=True)
        assert turned[name] == pytest.approx(alone, nan_ok=True)


def test_label_maps_of_different_shapes_are_refused():
    with pytest.raises(ConfigurationError, match="cannot be compared"):
        structure_scores(np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8), SPACING, {}, ALL)


# KiTS19


def test_the_kits_score_is_the_mean_over_cases_of_the_average_of_both_dices():
    rng = np.random.default_rng(0)
    challenge = get_challenge("kits19")
    cases, expected = [], []
    for _ in range(5):
        prediction, reference = (rng.integers(0, 3, (6, 7, 8)).astype(np.uint8) for _ in range(2))
        cases.append({"structures": scores_of(challenge, prediction, reference)})
        kidney = 2 * ((prediction > 0) & (reference > 0)).sum() / ((prediction > 0).sum() + (reference > 0).sum())
        tumor = 2 * ((prediction > 1) & (reference > 1)).sum() / ((prediction > 1).sum() + (reference > 1).sum())
        expected.append((kidney + tumor) / 2)
    assert challenge.metrics.totals(cases)["composite"] == pytest.approx(np.mean(expected))


def scores_of(challenge, prediction, reference, spacing=(1.0, 1.0, 1.0)):
    metrics = challenge.metrics
    return structure_scores(
        prediction,
        reference,
        spacing,
        metrics.structures,
        metrics.measures,
        tolerance=metrics.tolerance,
        conventions=metrics.conventions,
    )


# LiTS17


def random_lesions(rng, shape=(14, 13, 9)):
    """A prediction and a reference with many lesions, some split, some merged, some missed."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), 1)
    other = field + 0.5 * ndimage.gaussian_filter(rng.normal(size=shape), 1)
    maps = []
    for values in (other, field):
        labels = np.ones(shape, np.uint8)
        labels[values > np.quantile(values, rng.choice([0.85, 0.9, 0.95]))] = 2
        labels[:2] = 0
        maps.append(labels)
    return maps


def test_merged_split_and_missed_lesions_by_hand():
    """Along one row: two lesions under one prediction, one under two, one missed, one prediction of nothing."""
    reference, prediction = np.zeros((40, 3, 3), np.uint8), np.zeros((40, 3, 3), np.uint8)
    for start, stop in ((0, 4), (7, 11), (14, 22), (26, 30)):
        reference[start:stop, 1, 1] = 2
    for start, stop in ((0, 11), (14, 17), (19, 22), (35, 38)):
        prediction[start:stop, 1, 1] = 2
    result = lesions.case_measure(prediction, reference, (1.0, 1.0, 1.0))
    # The groups: reference lesions 1 and 2 with prediction 1, and 3 with predictions 2 and 3. Both overlap by more than
    # a half, so that two of the four predicted and of the four reference lesions count as found.
    assert result["detection"]["iou>0.5"] == {"tp": 2, "fp": 2, "fn": 2}
    assert sorted(lesion["dice"] for lesion in result["detected_lesions"]) == pytest.approx([16 / 19, 12 / 14])


def test_the_union_that_the_scorer_takes():
    """Two pairs that overlap by 2 of 6 voxels: IoU a third. The number of the second group's first prediction is 2.

    The first prediction of the first group has the group's own number, so that its union is right and it is dropped.
    The prediction of the second has the number 3, which no group has: its union is the reference alone, half of which
    is found: not more than a half. With one voxel more it counts, at an IoU of 3/6.
    """
    reference, prediction = np.zeros((40, 3, 3), np.uint8), np.zeros((40, 3, 3), np.uint8)
    reference[0:4, 1, 1] = reference[10:14, 1, 1] = 2
    prediction[2:6, 1, 1] = prediction[7:8, 1, 1] = prediction[12:16, 1, 1] = 2
    assert lesions.case_measure(prediction, reference, (1.0,) * 3)["detection"]["iou>0.5"]["tp"] == 0
    prediction[11, 1, 1] = 2
    assert lesions.case_measure(prediction, reference, (1.0,) * 3)["detection"]["iou>0.5"]["tp"] == 1


def test_lesions_touch_by_faces_only():
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[1, 1, 1] = labels[2, 2, 1] = labels[4, 4, 4] = labels[5, 4, 4] = 2
    assert lesions.case_measure(labels, labels, (1.0,) * 3)["detection"]["iou>0"] == {"tp": 3, "fp": 0, "fn": 0}


def test_segmentation_scores_by_hand():
    """A rod of 4 voxels against one of 6 that holds it; every voxel is boundary; 2 mm steps."""
    prediction, reference = cube((10, 3, 3), (2, 6), (1, 2), (1, 2)), cube((10, 3, 3), (2, 8), (1, 2), (1, 2))
    scores = lesions.segmentation_scores(prediction, reference, (2.0, 1.0, 1.0))
    assert scores["dice"] == 2 * 4 / 10
    assert scores["voe"] == pytest.approx(1 - 4 / 6)
    assert scores["rvd"] == (6 - 4) / 4  # (reference - prediction) / prediction, as the scorer has it
    assert scores["assd"] == (2 + 4) / 10
    assert scores["rmsd"] == pytest.approx(math.sqrt((4 + 16) / 10))
    assert scores["msd"] == 4


def test_the_empty_rules_of_lits():
    nothing, liver = np.zeros((4, 4, 4), np.uint8), np.ones((4, 4, 4), np.uint8)
    both = liver.copy()
    both[1:3, 1:3, 1:3] = 2
    only_lesion = np.where(both == 2, 2, 0).astype(np.uint8)
    challenge = get_challenge("lits17")

    def case(prediction, reference):
        result = {"structures": scores_of(challenge, prediction, reference)}
        special = lesions.case_measure(prediction, reference, (1.0,) * 3)
        for name, values in special.pop("structures").items():
            result["structures"][name].update(values)
        return {**result, **special}

    assert case(liver, liver)["structures"]["lesion"]["dice"] == 1
    assert case(liver, both)["structures"]["lesion"]["dice"] == 0
    no_liver = case(only_lesion, both)
    assert no_liver["structures"]["liver"] == {
        "dice": 0, "voe": 1, "rvd": 9001, "assd": 9001, "rmsd": 9001, "msd": 9001,
    }  # fmt: skip
    assert no_liver["structures"]["lesion"]["dice"] == 1
    assert no_liver["tumor_burden_error"] == 8 / 64 - 9001
    assert case(nothing, both)["detection"]["iou>0"] == {"tp": 0, "fp": 0, "fn": 1}
    assert case(both, liver)["detection"]["iou>0"] == {"tp": 0, "fp": 1, "fn": 0}
    totals = challenge.metrics.totals([case(liver, both)])
    assert totals["lesion_precision_iou>0.5"] == totals["lesion_recall_iou>0.5"] == 0
    assert (totals["detected_lesions_dice"], totals["detected_lesions_assd"]) == (0, 9001)


def test_the_totals_of_lits_are_those_of_the_formulas():
    rng = np.random.default_rng(3)
    pairs = [random_lesions(rng) for _ in range(4)]
    cases = [lesions.case_measure(*maps, SPACING) for maps in pairs]
    totals = lesions.totals(cases)
    for name, low in (("liver", 1), ("lesion", 2)):
        both = sum(((p >= low) & (r >= low)).sum() for p, r in pairs)
        total = sum((p >= low).sum() + (r >= low).sum() for p, r in pairs)
        assert totals[f"{name}_dice_global"] == pytest.approx(2 * both / total)
    for limit in (0.0, 0.5):
        counts = [case["detection"][f"iou>{limit:g}"] for case in cases]
        tp, fp, fn = (sum(count[key] for count in counts) for key in ("tp", "fp", "fn"))
        assert tp + fp == sum(ndimage.label(p == 2)[1] for p, _ in pairs)
        assert tp + fn == sum(ndimage.label(r == 2)[1] for _, r in pairs)
        assert totals[f"lesion_precision_iou>{limit:g}"] == pytest.approx(tp / (tp + fp))
        assert totals[f"lesion_recall_iou>{limit:g}"] == pytest.approx(tp / (tp + fn))
    burdens = [((r == 2).sum() / (r >= 1).sum()) - ((p == 2).sum() / (p >= 1).sum()) for p, r in pairs]
    assert totals["tumor_burden_rmse"] == pytest.approx(math.sqrt(np.mean(np.square(burdens))))
    assert totals["tumor_burden_max"] == pytest.approx(max(burdens))
    voe = [lesion["voe"] for case in cases for lesion in case["detected_lesions"]]
    assert voe and totals["detected_lesions_voe"] == pytest.approx(np.mean(voe))
