"""Lattice filtering against a slow lattice in a dictionary, and against the Gaussian itself."""

from functools import partial

import jax
import numpy as np
import pytest

from segjax.ops.permutohedral import connect, lattice_filter, sort_corners

ALL = np.ones(120, bool)


def slow_filter(features, values, *, reverse=False):
    """Adams, Baek and Davis's algorithm point by point; returns (filtered, lattice points)."""
    d = features.shape[1]
    axis = np.arange(1, d + 1)
    # Columns span the hyperplane Σ x = 0; the i-th has i ones, then −i, then zeros.
    basis = np.triu(np.ones((d + 1, d)))
    basis[axis, axis - 1] = -axis
    scale = np.sqrt(2 / 3) * (d + 1) / np.sqrt(axis * (axis + 1))
    numbers, corners, weights = {}, [], []
    for elevated in (features * scale) @ basis.T:
        # The nearest lattice point of remainder 0: round, then mend the sum where it costs least.
        nearest = np.round(elevated / (d + 1)).astype(int)
        order = np.argsort(elevated - nearest * (d + 1))
        excess = nearest.sum()
        nearest[order[: max(excess, 0)]] -= 1
        nearest[order[len(order) + min(excess, 0) :]] += 1
        nearest *= d + 1
        ascending = np.argsort(elevated - nearest)
        rest = (elevated - nearest)[ascending] / (d + 1)
        shares = np.append(1 - (rest[-1] - rest[0]), np.diff(rest))
        path = [nearest]
        for lowered in ascending[:-1]:
            path.append(path[-1] + 1 - (d + 1) * (np.arange(d + 1) == lowered))
        # The point lies in the simplex of these corners, at these barycentric coordinates.
        np.testing.assert_allclose(shares @ np.array(path), elevated, atol=1e-9)
        assert shares.min() > -1e-9
        corners.append([numbers.setdefault(tuple(corner), len(numbers)) for corner in path])
        weights.append(shares)

    rows = np.zeros((len(numbers) + 1, values.shape[1]))  # the last stands for all that are absent
    for point, (mine, shares) in enumerate(zip(corners, weights, strict=True)):
        rows[mine] += np.outer(shares, values[point])
    for direction in sorted(range(d + 1), reverse=reverse):
        step = 1 - (d + 1) * (np.arange(d + 1) == direction)
        blurred = rows.copy()
        for corner, number in numbers.items():
            beside = [numbers.get(tuple(np.array(corner) + sign * step), -1) for sign in (1, -1)]
            blurred[number] += rows[beside].sum(axis=0) / 2
        rows = blurred
    filtered = np.stack([w @ rows[c] for w, c in zip(weights, corners, strict=True)])
    return filtered / (1 + 2.0**-d), len(numbers)


def sample(d, spread=1.5):
    rng = np.random.default_rng(d)
    features = spread * rng.normal(size=(120, d))
    return features.astype(np.float32), rng.random((120, 3), np.float32)


@partial(jax.jit, static_argnames=("capacity", "reverse"))
def filter_and_count(features, values, valid, *, capacity=1024, reverse=False):
    corners = sort_corners(features, valid)
    return lattice_filter(connect(corners, capacity), values, reverse), corners.num_lattice_points


@pytest.mark.parametrize(("d", "reverse"), [(2, False), (5, False), (5, True)])
def test_filtering_equals_the_slow_lattice(d, reverse):
    features, values = sample(d)
    expected, count = slow_filter(features.astype(np.float64), values, reverse=reverse)
    filtered, counted = filter_and_count(features, values, ALL, reverse=reverse)
    assert counted == count
    np.testing.assert_allclose(filtered, expected, rtol=1e-4, atol=1e-5)


def test_the_answer_to_impulses_is_nearly_gaussian():
    """Of pixels 1/8 σ apart and far from the border: centred, of variance 1 on average."""
    position = np.stack(np.mgrid[:80, :80], axis=-1).reshape(-1, 2).astype(np.float32) / 8
    source = np.random.default_rng(0).integers(36, 44, (30, 2)) @ [80, 1]
    impulses = np.zeros((len(position), len(source)), np.float32)
    impulses[source, np.arange(len(source))] = 1
    answers = np.asarray(filter_and_count(position, impulses, np.ones(len(position), bool))[0])
    shares = (answers / answers.sum(axis=0))[..., None]
    offset = position[:, None] - position[source][None]
    np.testing.assert_allclose((shares * offset).sum(axis=0), 0, atol=0.01)
    np.testing.assert_allclose((shares * offset**2).sum(axis=0).mean(axis=0), 1, atol=0.03)
    exact = np.exp(-0.5 * (offset**2).sum(axis=-1, keepdims=True))
    assert np.abs(shares - exact / exact.sum(axis=0)).sum(axis=0).max() < 0.2


def test_points_that_are_not_valid_neither_give_nor_get():
    features, values = sample(5)
    valid = np.arange(len(features)) % 3 > 0
    expected, count = slow_filter(features[valid].astype(np.float64), values[valid])
    features[~valid] += 7  # elsewhere, where they would add lattice points of their own
    filtered, counted = filter_and_count(features, values, valid)
    assert counted == count
    np.testing.assert_allclose(filtered[valid], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(filtered[~valid], 0)


def test_the_gradient_filters_with_the_directions_reversed():
    """Which is the exact transpose; they commute only where the lattice has no gaps."""
    features, values = sample(5)

    @jax.jit
    def gradient(values):
        return jax.grad(lambda v: (filter_and_count(features, v, ALL)[0] ** 2).sum())(values)

    once, _ = slow_filter(features.astype(np.float64), values)
    expected, unlike = (
        slow_filter(features.astype(np.float64), 2 * once, reverse=reverse)[0]
        for reverse in (True, False)
    )
    assert np.abs(expected - unlike).max() > 1e-2
    np.testing.assert_allclose(gradient(values), expected, rtol=1e-4, atol=1e-4)


def test_more_lattice_points_than_the_capacity_give_nan_and_never_numbers():
    features, values = sample(2)
    _, count = slow_filter(features.astype(np.float64), values)
    assert np.isfinite(filter_and_count(features, values, ALL)[0]).all()
    assert np.isnan(filter_and_count(features, values, ALL, capacity=count - 1)[0]).all()


def test_coordinates_too_wide_for_the_keys_give_nan_and_never_numbers():
    features, values = sample(5)
    features[0] = 1e4 * np.array([1, -1, 1, -1, 1])
    assert np.isnan(filter_and_count(features, values, ALL)[0]).all()


def test_equal_points_share_one_simplex():
    values = np.ones((120, 3), np.float32)
    filtered, count = filter_and_count(np.full((120, 5), 0.3, np.float32), values, ALL)
    assert count == 6
    np.testing.assert_allclose(filtered, filtered[0, 0], rtol=1e-6)


def test_batches_equal_their_members():
    features, values = map(np.stack, zip(sample(5), sample(5, spread=1.0), strict=True))
    together, counts = jax.jit(jax.vmap(filter_and_count))(features, values, np.stack([ALL, ALL]))
    for place in range(2):
        alone, count = filter_and_count(features[place], values[place], ALL)
        assert counts[place] == count
        np.testing.assert_allclose(together[place], alone, rtol=1e-5, atol=1e-6)
