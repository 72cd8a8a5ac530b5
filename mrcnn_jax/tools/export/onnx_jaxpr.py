"""A traced function in the form that converts to ONNX: no calls, no choice of platforms, no constant arithmetic."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

# Primitives that call a function, with the name of the parameter that holds it.
_CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
_MAX_GROWTH = 65_536  # elements of a constant that replaces smaller ones, such as a broadcast scalar
_POINTWISE = (((3,), (0,)), ((), ()))  # the last axis of four with the first of two


def simplify(function: Callable[..., Any], arguments: Sequence[jax.ShapeDtypeStruct]) -> core.ClosedJaxpr:
    """Trace a function of arrays and simplify the result.

    Calls are inlined. `jax.lax.platform_dependent` becomes its default branch. What depends on constants alone is
    computed. 1 x 1 convolutions, which are matrix products for XLA, become convolutions again, so that a converter need
    not change the layout in between.
    """
    traced = jax.make_jaxpr(function)(*arguments)
    return jax.make_jaxpr(lambda *values: _evaluate(traced, values))(*arguments)


def _evaluate(closed: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= zip(closed.jaxpr.invars, arguments, strict=True)

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in closed.jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        values |= zip(equation.outvars, _evaluate_equation(equation, inputs), strict=True)
    return [read(variable) for variable in closed.jaxpr.outvars]


def _evaluate_equation(equation: Any, inputs: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        return _evaluate(params[_CALLS[name]], inputs)
    if name == "platform_index":
        return [params["platforms"].index(None)]
    if name == "cond" and isinstance(inputs[0], int):  # the index of the default branch
        return _evaluate(params["branches"][inputs[0]], inputs[1:])
    if name == "dot_general" and inputs[0].ndim == 4 and params["dimension_numbers"] == _POINTWISE:
        return [_pointwise_convolution(*inputs)]
    with jax.ensure_compile_time_eval() if _is_foldable(equation, inputs) else contextlib.nullcontext():
        outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
    return outputs if equation.primitive.multiple_results else [outputs]


def _is_foldable(equation: Any, inputs: list[Any]) -> bool:
    """Whether all inputs are constants and the result is not much larger than they are."""
    if any(isinstance(value, jax.core.Tracer) for value in inputs):
        return False
    size = sum(variable.aval.size for variable in equation.outvars)
    return size <= max(_MAX_GROWTH, sum(variable.aval.size for variable in equation.invars))


def _pointwise_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel[None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
