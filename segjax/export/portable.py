"""Programs of JAX's own operators only, for converters to other formats.

A traced program of segjax chooses forms by the platform that it is compiled for, and applies
operators of segjax (see `segjax.ops.linear`). A converter knows neither. Here a trace is evaluated
again, with the default form of each. Some operators are replaced by others that jax2onnx converts
and ONNX Runtime computes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import Literal

from segjax.ops.linear import default_form
from segjax.ops.platforms import for_every_platform

# Results of more elements than this, and than the operands, are not stored as constants: they would
# make files large.
_SMALL = 1 << 16

# Loops of at most so many steps are unrolled, if the number of steps is known.
_STEPS = 32

# Operators that call a program, and the parameters that may hold it.
_CALLS: Mapping[str, tuple[str, ...]] = {
    "jit": ("jaxpr",),
    "pjit": ("jaxpr",),
    "closed_call": ("call_jaxpr",),
    "checkpoint": ("jaxpr",),
    "remat2": ("jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr", "fun_jaxpr"),
}


def portable(function: Callable, *arguments: jax.ShapeDtypeStruct) -> Any:
    """Traces a function of arrays to operators of JAX without a choice of platform.

    Small arrays that do not depend on the arguments are computed here. Known branches and short
    loops of known length become straight programs.

    Args:
      function: a function of arrays.
      *arguments: the shapes and types of the arrays.

    Returns:
      The program, whose results are the leaves of the function's result.
      `jax.extend.core.jaxpr_as_fun` makes a function of it.
    """
    with for_every_platform():
        program = jax.make_jaxpr(function)(*arguments)
    return jax.make_jaxpr(partial(_evaluate, program))(*arguments)


class _Reshaped:
    """What the reshaped arrays of a trace were before."""

    def __init__(self):
        self._arrays: dict[int, tuple[Any, Any]] = {}

    def add(self, after, before):
        """Notes a reshaped array, and returns it. Both are kept, so that ids stay unique."""
        self._arrays[id(after)] = after, before
        return after

    def before(self, array):
        """Returns what an array was before it was reshaped, or the array."""
        return self._arrays.get(id(array), (array, array))[1]


def _evaluate(program: Any, *arguments) -> list:
    """Evaluates a program, closed or without constants."""
    constants = getattr(program, "consts", ())
    program = getattr(program, "jaxpr", program)
    values = dict(zip((*program.constvars, *program.invars), (*constants, *arguments), strict=True))

    def value(variable):
        return variable.val if isinstance(variable, Literal) else values[variable]

    reshaped = _Reshaped()
    for equation in program.eqns:
        found = _apply(equation, [value(variable) for variable in equation.invars], reshaped)
        values.update(zip(equation.outvars, found, strict=True))
    return [value(variable) for variable in program.outvars]


def _apply(equation, operands: list, reshaped: _Reshaped) -> list:
    """Applies one operator."""
    operator, options = equation.primitive, equation.params
    if (form := default_form(operator)) is not None:
        return _evaluate(jax.make_jaxpr(partial(form, **options))(*operands), *operands)
    if operator.name in _CALLS:
        (program,) = (options[name] for name in _CALLS[operator.name] if name in options)
        return _evaluate(program, *operands)
    if operator.name == "platform_index":
        # The last choice holds for all platforms that are not named.
        return [len(options["platforms"]) - 1]
    if operator.name == "cond" and _is_known(operands[0]):
        return _evaluate(options["branches"][int(operands[0])], *operands[1:])
    if operator.name == "while":
        return _repeat(operands, options)
    if operator.name == "reshape" and options["dimensions"] is None:
        return [_reshape(operands[0], options["new_sizes"], reshaped)]
    if operator.name == "dot_general" and _is_pointwise(operands, options, reshaped):
        return [_convolve_points(operands[0], operands[1], options["precision"], reshaped)]
    if operator.name == "gather" and options["mode"] == lax.GatherScatterMode.CLIP:
        return [_gather(operands[0], operands[1], options)]
    if operator.name == "select_n" and equation.outvars[0].aval.dtype == bool:
        return [_select(operands[0], operands[1], operands[2])]
    if operator.name == "sub" and _is_known(operands[1]) and not _is_known(operands[0]):
        # ONNX Runtime merges a convolution with additions after it, and not with subtractions.
        return [lax.add(operands[0], _bind(lax.neg_p, [operands[1]], {}))]
    if operator.name == "log2":  # of jax 0.12, and not of ONNX
        return [lax.log(operands[0]) / np.log(2).astype(operands[0].dtype)]
    found = _bind(operator, operands, {name: _rewritten(x) for name, x in options.items()})
    return [*found] if operator.multiple_results else [found]


def _is_known(value) -> bool:
    """Whether a value does not depend on the arguments of the traced function."""
    return not isinstance(value, Tracer)


def _is_program(option) -> bool:
    """Whether an option is a closed program. JAX's class of them has no public name."""
    return hasattr(option, "jaxpr") and hasattr(option, "consts")


def _rewritten(option):
    """Makes the programs in an option portable, such as the body of a loop."""
    if _is_program(option):
        return jax.make_jaxpr(partial(_evaluate, option))(*option.in_avals)
    if isinstance(option, tuple) and any(map(_is_program, option)):
        return tuple(map(_rewritten, option))
    return option


def _bind(operator, operands, options):
    """Applies an operator of JAX: now if all operands are known and the result is not larger."""
    if not all(map(_is_known, operands)):
        return operator.bind(*operands, **options)
    results = jax.eval_shape(lambda *x: operator.bind(*x, **options), *operands)
    largest = max([_SMALL, *(np.size(x) for x in operands)])
    if sum(x.size for x in jax.tree.leaves(results)) > largest:
        return operator.bind(*operands, **options)
    with jax.ensure_compile_time_eval():
        return operator.bind(*operands, **options)


def _repeat(operands, options) -> list:
    """Applies a loop: without one if it is short, and with one test for all of a batch."""
    tests, steps = options["cond_nconsts"], options["body_nconsts"]
    test = partial(_evaluate, options["cond_jaxpr"], *operands[:tests])
    step = partial(_evaluate, options["body_jaxpr"], *operands[tests : tests + steps])
    state = operands[tests + steps :]
    count = _known_steps(test, step, state)
    if count is not None:
        for _ in range(count):
            state = step(*state)
        return state
    if not options["cond_jaxpr"].out_avals[0].shape:
        return lax.while_loop(lambda state: test(*state)[0], lambda state: step(*state), state)

    # Under `jax.vmap` each entry has its test. Those that have ended stay as they are.
    def step_some(state):
        (going,) = test(*state)
        return [
            _select(lax.broadcast_in_dim(going, new.shape, range(going.ndim)), old, new)
            for old, new in zip(state, step(*state), strict=True)
        ]

    def any_goes_on(state):
        (going,) = test(*state)
        return lax.reduce_or(going, axes=range(going.ndim))

    return lax.while_loop(any_goes_on, step_some, state)


def _known_steps(test, step, state) -> int | None:
    """Counts the steps of a loop; None for many, or if the arguments decide about them."""
    counts: list[int | None] = [None]

    # Traces apart, so that the steps leave nothing in the program.
    def count(*unknown):
        rest = iter(unknown)
        now = [value if _is_known(value) else next(rest) for value in state]
        for number in range(_STEPS + 1):
            (going,) = test(*now)
            if not _is_known(going) or going.ndim:
                return
            if not going:
                counts[0] = number
                return
            now = step(*now)

    jax.eval_shape(count, *(value for value in state if not _is_known(value)))
    return counts[0]


def _reshape(array, shape, reshaped: _Reshaped):
    """Reshapes an array, or returns what it was if that had the shape."""
    before = reshaped.before(array)
    if before.shape == tuple(shape):
        return before
    return reshaped.add(_bind(lax.reshape_p, [array], _reshaping(shape)), before)


def _reshaping(shape) -> dict[str, Any]:
    return {"new_sizes": tuple(shape), "dimensions": None, "sharding": None}


def _is_pointwise(operands, options, reshaped: _Reshaped) -> bool:
    """Whether a product is a 1×1 convolution, which segjax computes on flattened maps."""
    positions, matrix = operands
    maps = reshaped.before(positions)
    return (
        options["dimension_numbers"] == (((1,), (0,)), ((), ()))
        and options["preferred_element_type"] in (None, positions.dtype)
        and (positions.ndim, matrix.ndim, maps.ndim) == (2, 2, 4)
        and maps.shape[3] == matrix.shape[0]
    )


def _convolve_points(positions, matrix, precision, reshaped: _Reshaped):
    """Computes a 1×1 convolution as one, with which ONNX Runtime merges what follows."""
    maps = lax.conv_general_dilated(
        reshaped.before(positions),
        _bind(lax.reshape_p, [matrix], _reshaping((1, 1, *matrix.shape))),
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
    flat = lax.reshape(maps, (positions.shape[0], matrix.shape[1]))
    return reshaped.add(flat, maps)


def _gather(array, places, options):
    """Gathers without places along axes that are taken whole, which are clipped to 0.

    jax2onnx fails on such places. They come from `x[index]` under `jax.vmap`.
    """
    numbers, sizes = options["dimension_numbers"], options["slice_sizes"]
    partly = [
        number
        for number, axis in enumerate(numbers.start_index_map)
        if sizes[axis] != array.shape[axis]
    ]
    if len(partly) < len(numbers.start_index_map) and not numbers.collapsed_slice_dims:
        if not partly and numbers.operand_batching_dims == numbers.start_indices_batching_dims:
            return array
        axes = tuple(numbers.start_index_map[number] for number in partly)
        numbers = numbers._replace(start_index_map=axes)
        places = lax.concatenate(
            [lax.slice_in_dim(places, number, number + 1, axis=-1) for number in partly],
            places.ndim - 1,
        )
    return _bind(lax.gather_p, [array, places], options | {"dimension_numbers": numbers})


def _select(which, no, yes):
    """Computes `lax.select_n`. ONNX Runtime has no choice between booleans."""
    return (which & yes) | (~which & no) if yes.dtype == bool else lax.select_n(which, no, yes)
