import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import groups
from segjax.models.groups import over_groups, sum_over_groups
from segjax.ops.platforms import for_every_platform

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(3, 4)).astype(np.float32)


def regions_of(batch, count):
    """Returns regions and a cotangent of the result."""
    return (
        {
            "features": RNG.normal(size=(batch, count, 3)).astype(np.float32),
            "index": np.arange(batch * count, dtype=np.int32).reshape(batch, count),
        },
        RNG.normal(size=(batch, count, 4)).astype(np.float32),
    )


def first(counts, places):
    """Returns flags whose first places in each image are active."""
    return np.arange(places) < np.array(counts)[:, None]


def layer(weights):
    def function(regions):
        hidden = jax.nn.relu(regions["features"] @ weights) + jnp.sin(weights[0])[None, None]
        return {"hidden": hidden**2, "index": 2 * regions["index"]}

    return function


@pytest.mark.parametrize(
    ("counts", "places", "size"),
    [((5, 2), 7, 2), ((8, 3), 8, 4), ((3,), 3, 16), ((1, 0, 1), 1, 2), ((0, 0), 5, 2)],
)
def test_values_and_gradients_are_those_of_all_at_once_in_groups_with_an_active_region(
    counts, places, size
):
    regions, cotangent = regions_of(len(counts), places)
    active = first(counts, places)
    number = -(-places // size)
    size_of_group = -(-places // number)
    computed = -(-max(counts) // size_of_group) * size_of_group
    seen = np.broadcast_to(np.arange(places) < computed, active.shape)

    @jax.jit
    def grouped(weights, features):
        inputs = regions | {"features": features}
        results = over_groups(layer(weights), inputs, active, size=size)
        return jnp.sum(results["hidden"] * cotangent), results

    @jax.jit
    def together(weights, features):
        results = layer(weights)(regions | {"features": features})
        results = {
            "hidden": jnp.where(seen[..., None], results["hidden"], 0.0),
            "index": jnp.where(seen, results["index"], 0),
        }
        return jnp.sum(results["hidden"] * cotangent), results

    (_, found), gradients = jax.value_and_grad(grouped, (0, 1), has_aux=True)(
        WEIGHTS, regions["features"]
    )
    (_, expected), wanted = jax.value_and_grad(together, (0, 1), has_aux=True)(
        WEIGHTS, regions["features"]
    )
    np.testing.assert_array_equal(found["index"], expected["index"])
    np.testing.assert_allclose(found["hidden"], expected["hidden"], rtol=1e-6, atol=1e-7)
    for gradient, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "places", "size"),
    [
        ((5, 2), 7, 2),
        ((8, 3), 8, 4),
        ((3,), 3, 16),
        ((1, 0, 1), 1, 2),
        ((0, 0), 5, 2),
        ((0,), 0, 2),
    ],
)
@pytest.mark.parametrize("form", ["_add_up", "_add_up_joined", "_all_at_once"])
def test_a_sum_over_groups_and_its_gradients_are_those_of_the_active_regions(
    counts, places, size, form, monkeypatch
):
    monkeypatch.setattr(groups, "_sums", getattr(groups, form))
    regions, _ = regions_of(len(counts), places)
    regions |= {"active": first(counts, places)}

    def function(operands, regions):
        weights, offset = operands
        hidden = layer(weights)(regions)["hidden"] + offset.astype(jnp.float32)
        hidden = jnp.where(regions["active"][..., None], hidden, 0.0)
        reported = {"square": jnp.sum(hidden**2), "active": jnp.sum(regions["active"])}
        return jnp.sum(hidden), reported

    def grouped(operands):
        total, reported = sum_over_groups(function, operands, regions, regions["active"], size=size)
        return 3 * total, reported

    def together(operands):
        total, reported = function(operands, regions)
        return 3 * total, reported

    operands = WEIGHTS, jnp.array(0.5, jnp.bfloat16)
    found = jax.jit(jax.value_and_grad(grouped, has_aux=True))(operands)
    expected = jax.jit(jax.value_and_grad(together, has_aux=True))(operands)
    chex.assert_trees_all_close(jax.jit(grouped)(operands), found[0], rtol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(found[1], expected[1])
    for value, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            value.astype(jnp.float32), other.astype(jnp.float32), rtol=1e-5, atol=1e-5
        )


def test_what_is_not_a_number_in_a_group_that_is_skipped_reaches_neither_value_nor_gradient():
    values = np.array([[4.0, 1.0, -1.0, -4.0, np.nan]], np.float32)

    @jax.jit
    def total(scale):
        roots = over_groups(lambda x: jnp.sqrt(scale * x), values, values > 0, size=2)
        return jnp.sum(roots)

    # Groups of two: the first holds the roots 2 and 1, the other two have no active value.
    assert jax.value_and_grad(total)(1.0) == (3.0, 1.5)

    @jax.jit
    def total_of_sums(scale):
        def of_group(scale, values):
            return jnp.sum(jnp.where(values > 0, jnp.sqrt(scale * values), 0.0)), ()

        return sum_over_groups(of_group, scale, values, values > 0, size=2)[0]

    assert jax.value_and_grad(total_of_sums)(1.0) == (3.0, 1.5)


def test_only_groups_with_an_active_region_of_any_image_are_computed():
    regions, _ = regions_of(2, 12)
    computed = []

    def function(regions):
        jax.debug.callback(lambda index: computed.append(index.tolist()), regions["index"])
        return regions["features"]

    @jax.jit
    def run(active):
        return over_groups(function, regions, active, size=3)

    def term(operands, regions):
        return jnp.sum(operands * function(regions)), ()

    @jax.jit
    def run_sum(active):
        one = jnp.ones(())
        of_one = jax.value_and_grad(sum_over_groups, 1, has_aux=True)
        return of_one(term, one, regions, active, size=3)

    for counts, number in (((12, 12), 4), ((4, 1), 2), ((0, 3), 1), ((0, 0), 0)):
        expected = [
            [list(range(3 * group + 12 * image, 3 * group + 12 * image + 3)) for image in (0, 1)]
            for group in range(number)
        ]
        for of_groups in (run, run_sum):
            computed.clear()
            jax.block_until_ready(of_groups(first(counts, 12)))
            jax.effects_barrier()
            assert sorted(computed) == expected


@pytest.mark.parametrize(
    ("platform", "places", "loops"), [("cpu", 3, 1), ("cuda", 12, 1), ("tpu", 24, 0)]
)
def test_groups_are_larger_on_gpus_and_one_on_tpus(platform, places, loops):
    regions, _ = regions_of(2, 24)

    def loss(weights):
        def function(weights, regions):
            return jnp.sum(layer(weights)(regions)["hidden"]), ()

        return sum_over_groups(function, weights, regions, first((4, 1), 24), size=3)[0]

    with for_every_platform():
        traced = jax.jit(jax.grad(loss)).trace(WEIGHTS)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.while") == loops
    products = re.findall(r"stablehlo.dot_general.*-> tensor<2x(\d+)x4xf32>", program)
    assert set(products) == {str(places)}


def test_the_function_is_compiled_once_however_many_groups_there_are():
    def products(count):
        regions, _ = regions_of(1, count)
        active = np.ones((1, count), bool)
        text = jax.jit(lambda: over_groups(layer(WEIGHTS), regions, active, size=2)).lower()
        return text.as_text().count("dot_general")

    assert products(2) == products(20) == 1


def test_no_regions_give_no_results():
    regions, _ = regions_of(2, 0)
    found = over_groups(layer(WEIGHTS), regions, np.zeros((2, 0), bool), size=4)
    assert found["hidden"].shape == (2, 0, 4)
    assert found["index"].dtype == jnp.int32
