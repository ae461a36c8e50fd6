"""Rules for operations that treat all coordinates alike, and for new tensors."""

from typing import Any

from torch import Tensor

from dynopt_ray.structure.tracing.counts import Size, Tracked
from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import keeps_zeros, rule
from dynopt_ray.structure.tracing.rules.joining import broadcast
from dynopt_ray.structure.tracing.rules.sizes import counted
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import Label, Role

keeps_zeros(
    *("mul", "multiply", "mul_", "__mul__", "__rmul__", "__imul__", "div", "divide", "__truediv__"),
    *("neg", "negative", "__neg__", "clone", "contiguous", "detach", "to", "type", "type_as"),
    *("float", "half", "double", "bfloat16", "cpu", "cuda", "data"),
)


@rule(
    *("abs", "acos", "asin", "atan", "ceil", "clamp", "clamp_max", "clamp_min", "clip", "cos"),
    *("cosh", "deg2rad", "erf", "erfc", "exp", "exp2", "expm1", "floor", "frac", "log", "log10"),
    *("log1p", "log2", "logit", "nan_to_num", "neg", "negative", "reciprocal", "round", "rsqrt"),
    *("sigmoid", "sign", "sin", "sinc", "sinh", "sqrt", "square", "tan", "tanh", "trunc"),
    *("isnan", "isinf", "isfinite", "logical_not", "bitwise_not"),
    *("celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu"),
    *("logsigmoid", "mish", "relu", "relu6", "rrelu", "selu", "silu", "softplus", "softshrink"),
    *("softsign", "tanhshrink", "threshold"),
    *("celu_", "elu_", "hardtanh_", "leaky_relu_", "relu_", "rrelu_", "selu_", "threshold_"),
    *("abs_", "clamp_", "exp_", "neg_", "sigmoid_", "sqrt_", "tanh_", "round_", "floor_"),
    *("alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
    *("dropout_", "feature_alpha_dropout"),
    *("clone", "contiguous", "cpu", "cuda", "detach", "detach_", "double", "float", "half"),
    *("bfloat16", "int", "long", "bool", "requires_grad_", "to", "type", "type_as", "data"),
    *("__neg__", "__abs__", "__invert__"),
)
@rule(
    *("sub", "subtract", "rsub", "floor_divide", "pow"),
    *("fmod", "remainder", "maximum", "minimum", "fmax", "fmin", "atan2", "hypot", "lerp"),
    *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "where"),
    *("addcmul", "addcdiv", "masked_fill", "copysign", "xlogy", "logaddexp"),
    *("sub_", "pow_", "masked_fill_", "addcmul_", "addcdiv_", "copy_", "lerp_"),
    *("__sub__", "__rsub__", "__isub__"),
    *("__rtruediv__", "__rdiv__", "__pow__", "__rpow__", "__ipow__"),
    *("__mod__", "__floordiv__", "__rfloordiv__", "__and__", "__or__", "__xor__"),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
)
def elementwise(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """Units that meet are tied; parameters are operands like any other tensor."""
    _valued((*args, *kwargs.values()))
    operands = list(tensors_in((args, kwargs)))
    for tensor in operands:
        trace.use(tensor)
    trace.set(out, broadcast(trace, operands, out))


@rule("add", "add_", "__add__", "__radd__", "__iadd__")
def add(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """An elementwise operation. A vector of parameters added to a product is its bias."""
    elementwise(trace, out, *args, **kwargs)
    operands = list(tensors_in(args))
    if len(operands) == 2 and not kwargs:
        for one, other in (operands, operands[::-1]):
            if other.ndim == 1 and other.shape[0] == one.shape[-1]:
                trace.shifted(out, one, other)


@rule("mul", "multiply", "mul_", "__mul__", "__rmul__", "__imul__")
def multiply(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """An elementwise operation. A parameter among the factors scales units.

    Labels are those of the factor that should be zero for new units; see `Weights`.
    """
    _valued((*args, *kwargs.values()))
    factors = list(tensors_in((args, kwargs)))
    for tensor in factors:
        scales: list[Role] = ["scale"] * tensor.ndim
        trace.use(tensor, *scales)
    trace.set(out, broadcast(trace, trace.weights.in_order(factors), out))


@rule("div", "divide", "true_divide", "div_", "__truediv__", "__itruediv__", "__idiv__")
def divide(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """An elementwise operation. Divisors must not be zero for new units."""
    elementwise(trace, out, *args, **kwargs)
    dividend, *divisors = tensors_in((args, kwargs))
    for divisor in divisors:
        for label in trace.labels(divisor):
            trace.divides(label.ids)
        trace.scales(dividend)


@rule("prelu")
def prelu(trace: Trace, out: Tensor, input: Tensor, weight: Tensor) -> None:
    """One slope for all channels, or one per channel (dimension 1)."""
    trace.use(weight, "scale")
    if weight.numel() > 1:
        trace.match(input, 1 if input.ndim > 1 else 0, trace.units(weight, 0))
    else:
        trace.pin(trace.labels(weight), "it is one slope for all channels")
    trace.set(out, trace.labels(input))


@rule(
    *("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"),
    *("bernoulli", "bernoulli_", "normal_", "uniform_", "zero_", "fill_"),
)
def filled(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """A new or refilled tensor of the input's shape has the units of the input."""
    trace.set(out, trace.labels(input))


@rule(
    *("empty", "full", "ones", "rand", "randn", "zeros", "randint"),
    *("new_empty", "new_full", "new_ones", "new_zeros"),
)
def made_here(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """A tensor is created inside forward, and some of its sizes may follow a width.

    Such a dimension gets new ids. They are tied to the units that it meets or that its size counts.
    """
    given = [a for a in (*args, *kwargs.values()) if isinstance(a, int | tuple | list)]
    sizes = next((list(a) for a in given if not isinstance(a, int)), given)[: out.ndim]
    _valued(given[1:] if len(given) > 1 and not isinstance(given[0], int) else ())
    _valued([kwargs.get("fill_value"), kwargs.get("high")])
    labels = [
        Label((dim,), trace.record.fresh(out.shape[dim]))
        for dim, size in enumerate(sizes)
        if isinstance(size, Size)
    ]
    trace.set(out, tuple(labels))
    counted(trace, out, sizes)


@rule("arange", "eye", "meshgrid", "one_hot", "randperm", "tril_indices", "triu_indices")
def data(trace: Trace, out: Any, *_: Any, **__: Any) -> None:
    """A tensor created inside forward whose values depend on their position: data without units."""
    for tensor in tensors_in(out):
        trace.set(tensor, ())


@rule("linspace", "logspace", "tensor", "as_tensor", "scalar_tensor", "new_tensor")
def numbers(trace: Trace, out: Any, *args: Any, **kwargs: Any) -> None:
    """A tensor is made from numbers; sizes among them are used as values."""
    _valued((args, *kwargs.values()))
    data(trace, out)


def _valued(given: Any) -> None:
    """Note that all sizes among the arguments are used as values."""
    if isinstance(given, Tracked):
        given.as_value()
    elif isinstance(given, list | tuple):
        for value in given:
            _valued(value)


@rule("tril", "triu", "tril_", "triu_")
def triangle(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """One side of the diagonal is set to zero, so the result depends on the position of units."""
    trace.use(input)
    for label in trace.labels(input):
        if {input.ndim - 2, input.ndim - 1} & set(label.dims):
            trace.pin(label.ids, "it is cut to a triangle")
    trace.set(out, trace.labels(input))
