"""Linear operators with forms by platform and derivatives of any order in both modes.

`jax.custom_vjp` would rule out forward mode, so these operators are JAX primitives. One that is
linear in an operand is its own derivative there, and its transpose is another operator. "How JAX
primitives work" in JAX's documentation explains the rules that are registered here.
"""

import functools
from collections.abc import Callable, Mapping

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Transpose = tuple[Primitive, tuple[int, ...]]

_default_forms: dict[Primitive, Callable] = {}


def linear_operator(name: str, *, default: Callable, **forms: Callable) -> Primitive:
    """Makes a primitive that computes the form of its platform, or else `default`.

    The form is chosen when a program is lowered for a platform. `apply` applies the operator.

    Args:
      name: name of the primitive in jaxprs.
      default: a function of (*operands, options=options), whose options are hashable.
      **forms: the same function in other forms, by JAX's name of the platform: cpu, cuda, tpu.

    Returns:
      A primitive with the parameters `options`, `mapped` and `precision`. JAX sets `mapped` under
      `jax.vmap`: it has an entry for each mapped axis, the outermost first, which tells whether
      each operand has that axis. Mapped axes come first in the operands and in the result.
      `precision` is `jax.default_matmul_precision` where the operator was applied. A form is traced
      later, outside of that context.
    """
    operator = Primitive(name)

    def of(form):
        def run(*operands, options, mapped, precision):
            function = functools.partial(form, options=options)
            for has_axis in reversed(mapped):
                function = jax.vmap(function, [0 if has else None for has in has_axis])
            with jax.default_matmul_precision(precision):
                return function(*operands)

        return run

    def shape(*operands, **options):
        result = jax.make_jaxpr(functools.partial(of(default), **options))(*operands).out_avals[0]
        # `apply` lets all operands vary over the same devices, and so does the result.
        return result.update(manual_axis_type=operands[0].manual_axis_type)

    def batch(operands, axes, *, mapped, **options):
        operands = [
            x if axis is None else jax.numpy.moveaxis(x, axis, 0)
            for x, axis in zip(operands, axes, strict=True)
        ]
        has_axis = tuple(axis is not None for axis in axes)
        return operator.bind(*operands, mapped=(has_axis, *mapped), **options), 0

    operator.def_impl(jax.jit(operator.bind, static_argnames=("options", "mapped", "precision")))
    operator.def_abstract_eval(shape)
    batching.primitive_batchers[operator] = batch
    _default_forms[operator] = of(default)
    mlir.register_lowering(operator, mlir.lower_fun(of(default), multiple_results=False))
    for platform, form in forms.items():
        mlir.register_lowering(operator, mlir.lower_fun(of(form), multiple_results=False), platform)
    return operator


def default_form(operator: Primitive) -> Callable | None:
    """Returns the default form of an operator of `linear_operator`, and None for any other.

    The form is a function of the operands, with the operator's parameters as keywords.
    """
    return _default_forms.get(operator)


def apply(operator: Primitive, *operands, options):
    """Applies an operator of `linear_operator` to arrays, with hashable options."""
    # Inside `jax.shard_map`, JAX sums the cotangent of an operand over devices where the operand
    # was cast to vary over them. JAX's own operators cast theirs like this.
    varying = [jax.typeof(x).manual_axis_type.varying for x in operands]
    missing = [frozenset().union(*varying) - axes for axes in varying]
    operands = [
        jax.lax.pcast(x, tuple(sorted(axes)), to="varying") if axes else x
        for x, axes in zip(operands, missing, strict=True)
    ]
    precision = jax.config.jax_default_matmul_precision
    return operator.bind(*operands, options=options, mapped=(), precision=precision)


def define_transposes(operator: Primitive, transposes: Mapping[int, Transpose], operands: int):
    """Makes an operator differentiable in the operands in which it is linear.

    Args:
      operator: a primitive from `linear_operator`.
      transposes: for the place of each such operand, the operator that computes its cotangent, and
        the order of that operator's operands. These are the operands of `operator`, with the
        result's cotangent in place of the operand.
      operands: the number of operands; those without a transpose get no derivative.
    """

    def tangent(place):
        def replace(tangent, *primals, **options):
            return operator.bind(*primals[:place], tangent, *primals[place + 1 :], **options)

        return replace if place in transposes else None

    def transpose(cotangent, *primals, mapped, **options):
        (place,) = (i for i, x in enumerate(primals) if ad.is_undefined_primal(x))
        results = [None] * len(primals)
        if type(cotangent) is ad.Zero:
            return results
        transposed, order = transposes[place]
        replaced = [cotangent if i == place else x for i, x in enumerate(primals)]
        levels = tuple(tuple(i == place or has[i] for i in order) for has in mapped)
        result = transposed.bind(*(replaced[i] for i in order), mapped=levels, **options)
        # An operand without a mapped axis contributes to all results along that axis.
        shared = tuple(level for level, has in enumerate(mapped) if not has[place])
        results[place] = result.sum(shared) if shared else result
        return results

    ad.defjvp(operator, *(tangent(place) for place in range(operands)))
    ad.primitive_transposes[operator] = transpose


def transposed(function: Callable, operand, cotangent):
    """Applies the transpose of a linear function, in a form of a linear operator.

    Args:
      function: linear in its one argument. It may close over arrays.
      operand: the argument's shape and dtype.
      cotangent: an array like the function's result.

    Returns:
      An array like `operand`.
    """
    axes = jax.typeof(cotangent).manual_axis_type.varying
    if not axes:
        return jax.linear_transpose(function, operand)(cotangent)[0]
    # In `jax.shard_map`, an abstract operand would be one that all devices share, whose cotangent
    # JAX sums over them; `apply` already asked for that sum.
    zeros = jax.numpy.zeros(operand.shape, operand.dtype)
    zeros = jax.lax.pcast(zeros, tuple(sorted(axes)), to="varying")
    return jax.vjp(function, zeros)[1](cotangent)[0]
