"""The U-Net weight map equals equation 2 of the paper, computed pixel by pixel."""

import numpy as np
import pytest

from segjax.data.augmentation.weight_map import (
    AddWeightMap,
    balanced_class_weights,
    separation_term,
    weight_map,
)


def separation_oracle(instances, w0, sigma):
    """Computes every distance between a pixel and a cell pixel."""
    pixels = np.argwhere(np.ones_like(instances, bool))
    to_cells = []
    for number in np.unique(instances[instances > 0]):
        cell = np.argwhere(instances == number)
        to_cells.append(np.linalg.norm(pixels[:, None] - cell[None], axis=-1).min(axis=1))
    if len(to_cells) < 2:
        return np.zeros(instances.shape)
    nearest, second = np.sort(to_cells, axis=0)[:2]
    return (w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))).reshape(instances.shape)


def random_cells(size, count, radius, seed):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    instances = np.zeros(size, np.int32)
    for number in range(1, count + 1):
        centre = rng.uniform(0, size)
        inside = np.hypot(rows - centre[0], columns - centre[1]) < rng.uniform(1, radius)
        instances[inside] = number
    return instances


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("w0", "sigma"), [(10.0, 5.0), (3.0, 1.5)])
def test_separation_term_equals_the_brute_force_oracle(seed, w0, sigma):
    instances = random_cells((45, 60), 12, 8, seed)
    term = separation_term(instances, w0=w0, sigma=sigma)
    assert term.dtype == np.float32
    np.testing.assert_allclose(term, separation_oracle(instances, w0, sigma), atol=1e-5)
    assert term.max() > 0.5 * w0


def test_a_gap_of_two_pixels_has_the_weight_computed_by_hand():
    instances = np.zeros((5, 20), np.int32)
    instances[:, :9], instances[:, 11:] = 1, 2
    weights = weight_map(np.uint8(instances > 0), instances, class_weights=(0.5, 1.5))
    np.testing.assert_allclose(weights[:, 9:11], 0.5 + 10 * np.exp(-(3**2) / 50), rtol=1e-6)
    np.testing.assert_array_equal(weights[:, :9], 1.5)
    np.testing.assert_array_equal(weights[:, 11:], 1.5)


def test_a_strip_cut_only_from_the_labels_counts_as_the_gap():
    whole = np.ones((5, 20), np.int32)
    whole[:, 10:] = 2
    parted = whole.copy()
    parted[:, 9:11] = 0
    labels = np.uint8(parted > 0)
    np.testing.assert_array_equal(weight_map(labels, whole), weight_map(labels, parted))


@pytest.mark.parametrize("cells", [0, 1])
def test_with_fewer_than_two_cells_only_the_class_balance_is_left(cells):
    instances = np.zeros((10, 10), np.int32)
    instances[2:4, 2:7] = cells
    labels = np.uint8(instances > 0)
    np.testing.assert_array_equal(separation_term(instances), 0)
    expected = np.where(labels == 1, 100 / (2 * 10), 100 / (2 * 90)) if cells else np.ones((10, 10))
    np.testing.assert_allclose(weight_map(labels, instances), expected, rtol=1e-6)


def test_ignored_pixels_weigh_nothing_and_the_balance_averages_to_one_over_the_rest():
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (30, 30), p=[0.6, 0.25, 0.05, 0.1])
    weights = weight_map(labels, np.zeros((30, 30), np.int32))
    np.testing.assert_array_equal(weights[labels == 255], 0)
    np.testing.assert_allclose(weights[labels != 255].mean(), 1, rtol=1e-5)
    sums = [weights[labels == label].sum() for label in range(3)]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-5)


def test_everything_ignored_weighs_nothing():
    labels = np.full((4, 4), 255, np.uint8)
    np.testing.assert_array_equal(weight_map(labels, np.zeros((4, 4), np.int32)), 0)


def test_class_weights_of_a_data_set_average_to_one_over_its_pixels():
    counts = np.array([900, 0, 90, 10])
    weights = balanced_class_weights(counts)
    np.testing.assert_allclose(weights, [1000 / 2700, 0, 1000 / 270, 1000 / 30])
    np.testing.assert_allclose((weights * counts).sum() / counts.sum(), 1)


def test_ids_of_any_numbering_give_the_same_weights():
    instances = random_cells((40, 40), 8, 7, seed=1)
    renumbered = np.where(instances > 0, 2**31 - 1 - 77 * instances, 0).astype(np.int32)
    np.testing.assert_array_equal(separation_term(renumbered), separation_term(instances))
    full = np.where(np.arange(20) < 10, 7_000_000, 9_000_000)[None].repeat(3, axis=0)
    np.testing.assert_allclose(separation_term(full)[:, 10], 10 * np.exp(-1 / 50), rtol=1e-6)


def test_weights_are_the_same_bits_wherever_the_array_lies_in_memory():
    instances = random_cells((64, 90), 10, 12, seed=2)
    expected = separation_term(instances)
    for offset in range(1, 8):
        memory = np.zeros(instances.size + 8, np.int32)
        moved = memory[offset : offset + instances.size].reshape(instances.shape)
        moved[:] = instances
        np.testing.assert_array_equal(separation_term(moved), expected)
        # With other widths, OpenCV's rows start at other addresses.
        part = np.ascontiguousarray(instances[:, offset:])
        if set(np.unique(part)) == set(np.unique(instances)):
            inner = separation_term(part)[:, 40:]
            np.testing.assert_allclose(inner, expected[:, 40 + offset :], atol=1e-5)


def test_the_transform_adds_weights_and_keeps_the_rest():
    instances = random_cells((30, 30), 5, 6, seed=3)
    example = {"id": "a", "labels": np.uint8(instances > 0), "instances": instances}
    result = AddWeightMap(w0=4.0, sigma=2.0)(example, np.random.default_rng(0))
    expected = weight_map(example["labels"], instances, w0=4.0, sigma=2.0)
    np.testing.assert_array_equal(result.pop("weights"), expected)
    assert result == example


def test_bad_input_is_named():
    labels, instances = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.int32)
    with pytest.raises(ValueError, match=r"\(4, 4\) but instances \(4, 3\)"):
        weight_map(labels, instances[:, :3])
    with pytest.raises(ValueError, match="-3"):
        separation_term(instances - 3)
    with pytest.raises(ValueError, match=r"sigma.*0"):
        weight_map(labels, instances, sigma=0.0)
    with pytest.raises(ValueError, match=r"label 2 .*2 class_weights"):
        weight_map(labels + np.uint8(2), instances, class_weights=(1.0, 1.0))
    with pytest.raises(ValueError, match="'instances'"):
        AddWeightMap()({"labels": labels}, np.random.default_rng(0))
