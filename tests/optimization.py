"""XLA's optimisation in tests: mostly off, so that compiling is quick, or on, as for users."""

import contextlib

import jax

SETTING = "jax_disable_most_optimizations"


@contextlib.contextmanager
def as_for_users():
    """Compiles with all of XLA's optimisations inside a `with` block."""
    before = jax.config.read(SETTING)
    jax.clear_caches()  # programs compiled before would be used again
    jax.config.update(SETTING, False)
    try:
        yield
    finally:
        jax.config.update(SETTING, before)
        jax.clear_caches()
