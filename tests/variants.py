"""A function under `jit`, and on four devices, against plain calls."""

import chex
import jax
import numpy as np

EXAMPLES = 4  # one for each device
VARIANTS = chex.variants(with_jit=True, with_pmap=True)


class VariantsCase(chex.TestCase):
    """Has `check` for tests that are decorated with `VARIANTS`.

    Without jit, a function has its reference results; they differ from example to example.
    """

    def check(self, function, examples, *, tolerance=1e-5):
        """Asserts that the variant of `function(example)` gives what plain calls give.

        Args:
          function: a tree of arrays → a tree of arrays.
          examples: `EXAMPLES` trees of NumPy arrays of the same shapes, which pmap stacks.
          tolerance: relative and absolute.
        """
        expected = stacked([function(example) for example in examples])
        run = self.variant(function, broadcast_args_to_devices=False, reduce_fn=None)
        if self.variant.type is chex.ChexVariantType.WITH_PMAP:
            found = jax.device_get(run(stacked(examples)))
        else:
            found = stacked([run(example) for example in examples])
        chex.assert_trees_all_equal_dtypes(found, expected)
        chex.assert_trees_all_close(found, expected, rtol=tolerance, atol=tolerance)
        # Otherwise, devices that all computed the first example would go unnoticed.
        assert any((leaf != leaf[0]).any() for leaf in jax.tree.leaves(expected))


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
