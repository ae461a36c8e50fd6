"""Rules for operations that treat all coordinates alike, and for new tensors."""

from typing import Any

from torch import Tensor

from dynopt_ray.structure.tracing.counts import Tracked
from dynopt_ray.structure.tracing.nested_tensors import tensors_in
from dynopt_ray.structure.tracing.registry import joins_zeros, keeps_zeros, rule, with_in_place
from dynopt_ray.structure.tracing.rules.joining import broadcast
from dynopt_ray.structure.tracing.rules.sizes import counted, fresh_along
from dynopt_ray.structure.tracing.tracer import Trace
from dynopt_ray.structure.units import Label, Role

keeps_zeros(
    *("mul", "multiply", "mul_", "__mul__", "__rmul__", "__imul__", "div", "divide", "__truediv__"),
    *("neg", "negative", "__neg__", "clone", "contiguous", "detach", "to", "type", "type_as"),
    *("float", "half", "double", "bfloat16", "cpu", "cuda", "data", "cfloat", "cdouble"),
    *("real", "imag", "conj", "conj_physical", "resolve_conj", "resolve_neg"),
)
joins_zeros("complex")


@rule(
    *with_in_place(
        *("abs", "absolute", "acos", "acosh", "angle", "arccos", "arccosh", "arcsin", "arcsinh"),
        *("arctan", "arctanh", "asin", "asinh", "atan", "atanh", "bitwise_not", "ceil", "celu"),
        *("clamp", "clamp_max", "clamp_min", "clip", "conj_physical", "cos", "cosh", "deg2rad"),
        *("digamma", "elu", "erf", "erfc", "erfinv", "exp", "exp2", "expm1", "fix", "floor"),
        *("frac", "hardtanh", "i0", "leaky_relu", "lgamma", "log", "log10", "log1p", "log2"),
        *("logical_not", "logit", "mvlgamma", "nan_to_num", "neg", "negative", "polygamma"),
        *("positive", "rad2deg", "reciprocal", "relu", "round", "rsqrt", "sgn", "sigmoid"),
        *("sign", "sin", "sinc", "sinh", "sqrt", "square", "tan", "tanh", "trunc"),
    ),
    *("conj", "imag", "isfinite", "isinf", "isnan", "isneginf", "isposinf", "isreal", "real"),
    *("frexp", "resolve_conj", "resolve_neg", "signbit"),
    *("gelu", "hardshrink", "hardsigmoid", "hardswish", "logsigmoid", "mish", "relu6", "rrelu"),
    *("selu", "silu", "softplus", "softshrink", "softsign", "tanhshrink", "threshold"),
    *("celu_", "elu_", "hardtanh_", "leaky_relu_", "relu_", "rrelu_", "selu_", "threshold_"),
    *("entr", "erfcx", "expit", "gammaln", "i0e", "i1", "i1e", "log_ndtr", "ndtr", "ndtri", "psi"),
    *("alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
    *("dropout_", "feature_alpha_dropout", "native_dropout"),
    *("clone", "contiguous", "cpu", "cuda", "detach", "detach_", "double", "float", "half"),
    *("bfloat16", "int", "long", "bool", "requires_grad_", "to", "type", "type_as", "data"),
    *("byte", "char", "short", "cfloat", "cdouble", "chalf", "pin_memory", "alias_copy"),
    *("to_dense", "to_sparse", "to_sparse_csr", "coalesce", "poisson"),
    *("__neg__", "__abs__", "__invert__"),
)
@rule(
    *with_in_place(
        *("addcdiv", "addcmul", "arctan2", "atan2", "bitwise_and", "bitwise_left_shift"),
        *("bitwise_or", "bitwise_right_shift", "bitwise_xor", "copysign", "eq"),
        *("float_power", "floor_divide", "fmod", "gcd", "ge", "greater", "greater_equal", "gt"),
        *("heaviside", "hypot", "igamma", "igammac", "lcm", "ldexp", "le", "lerp", "less"),
        *("less_equal", "logaddexp", "logaddexp2", "logical_and", "logical_or", "logical_xor"),
        *("lt", "masked_fill", "ne", "nextafter", "not_equal", "pow", "remainder", "sub"),
        *("subtract", "xlogy"),
    ),
    *("complex", "polar", "isclose", "maximum", "minimum", "fmax", "fmin", "rsub"),
    *("xlog1py", "zeta", "gammainc", "gammaincc"),
    *("__sub__", "__rsub__", "__isub__", "__rtruediv__", "__rdiv__"),
    *("__pow__", "__rpow__", "__ipow__", "__mod__", "__rmod__"),
    *("__imod__", "__floordiv__", "__rfloordiv__", "__ifloordiv__", "__and__", "__rand__"),
    *("__iand__", "__or__", "__ror__", "__ior__", "__xor__", "__rxor__", "__ixor__"),
    *("__lshift__", "__rshift__", "__ilshift__", "__irshift__"),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
)
def elementwise(trace: Trace, out: Any, *args: Any, **kwargs: Any) -> None:
    """Units that meet are tied; parameters are operands like any other tensor."""
    _valued((*args, *kwargs.values()))
    operands = list(tensors_in((args, kwargs)))
    for tensor in operands:
        trace.use(tensor)
    for result in tensors_in(out):
        trace.set(result, broadcast(trace, operands, result))


@rule("add", "add_", "__add__", "__radd__", "__iadd__")
def add(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """An elementwise operation. A vector of parameters added to a product is its bias."""
    elementwise(trace, out, *args, **kwargs)
    operands = list(tensors_in(args))
    if len(operands) == 2 and not kwargs:
        for one, other in (operands, operands[::-1]):
            if other.ndim == 1 and other.shape[0] == one.shape[-1]:
                trace.shifted(out, one, other)


@rule("mul", "multiply", "mul_", "multiply_", "__mul__", "__rmul__", "__imul__")
def multiply(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """An elementwise operation. A parameter among the factors scales units.

    A matrix that is larger than all other factors is itself what they scale. Labels are those of
    the factor that should be zero for new units; see `Weights`.
    """
    _valued((*args, *kwargs.values()))
    factors = list(tensors_in((args, kwargs)))
    for tensor in factors:
        smaller = [t.numel() < tensor.numel() for t in factors if t is not tensor]
        if tensor.ndim < 2 or not smaller or not all(smaller):
            scales: list[Role] = ["scale"] * tensor.ndim
            trace.use(tensor, *scales)
        else:
            trace.use(tensor)
    trace.set(out, broadcast(trace, trace.weights.in_order(factors), out))


@rule(
    *with_in_place("div", "divide", "true_divide"),
    *("__div__", "__truediv__", "__itruediv__", "__idiv__"),
)
def divide(trace: Trace, out: Any, *args: Any, **kwargs: Any) -> None:
    """An elementwise operation. Divisors must not be zero for new units."""
    elementwise(trace, out, *args, **kwargs)
    dividend, *divisors = tensors_in((args, kwargs))
    for divisor in divisors:
        for label in trace.labels(divisor):
            trace.inexact.divides(label.ids)
        if dividend in trace.weights:
            trace.inexact.scales(trace.labels(dividend))


@rule("where")
def where(trace: Trace, out: Any, condition: Tensor, *args: Any, **kwargs: Any) -> None:
    """One of two values by a condition; with the condition alone, the places where it holds."""
    if args or kwargs:
        elementwise(trace, out, condition, *args, **kwargs)
    else:
        decided_by_values(trace, out, condition)


@rule("copy_")
def copy(trace: Trace, out: Tensor, input: Tensor, source: Tensor, *_: Any, **__: Any) -> None:
    """Values are overwritten. An integer buffer follows the units that are written into it."""
    if source.shape == input.shape and len(trace.labels(source)) == source.ndim:
        trace.own(input)
    elementwise(trace, out, input, source)


@rule("resize_")
def resize(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """Sizes are changed in place. A tensor that gets its size only now cannot follow yet."""
    if all(
        label.ids.shape == tuple(out.shape[d] for d in label.dims) for label in trace.labels(input)
    ):
        return
    trace.use(input)
    reason = "it gets its size in the first pass; run the network once and trace it again"
    trace.pin(trace.labels(input), reason)
    labels = [Label((dim,), trace.record.fresh(size)) for dim, size in enumerate(out.shape)]
    trace.pin(tuple(labels), reason)
    trace.set(out, tuple(labels))


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
    *("bernoulli", "bernoulli_", "normal_", "uniform_", "zero_", "fill_", "exponential_"),
    *("cauchy_", "geometric_", "log_normal_", "random_"),
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
    trace.set(out, fresh_along(trace, out, sizes, range(out.ndim)))
    counted(trace, out, sizes)


@rule("arange", "eye", "meshgrid", "one_hot", "randperm", "tril_indices", "triu_indices")
def data(trace: Trace, out: Any, *_: Any, **__: Any) -> None:
    """A tensor created inside forward whose values depend on their position: data without units."""
    for tensor in tensors_in(out):
        trace.set(tensor, ())


@rule(
    *("linspace", "logspace", "tensor", "as_tensor", "scalar_tensor", "new_tensor", "fftfreq"),
    *("rfftfreq", "bartlett_window", "blackman_window", "hamming_window", "hann_window"),
    "kaiser_window",
)
def numbers(trace: Trace, out: Any, *args: Any, **kwargs: Any) -> None:
    """A tensor is made from numbers; sizes among them are used as values."""
    _valued((args, *kwargs.values()))
    data(trace, out)


@rule(
    *("argwhere", "bincount", "histc", "histogram", "nonzero", "nonzero_static", "unique"),
    *("unique_consecutive", "searchsorted", "multinomial", "masked_select", "take", "put", "put_"),
    *("masked_scatter", "masked_scatter_"),
)
def decided_by_values(trace: Trace, out: Any, *args: Any, **kwargs: Any) -> None:
    """Entries are counted, searched or taken one by one, wherever they lie."""
    for tensor in tensors_in((args, kwargs)):
        trace.use(tensor)
        trace.pin(trace.labels(tensor), "its entries are counted, searched or taken one by one")
    data(trace, out)


@rule("bucketize", "isin")
def looked_up(trace: Trace, out: Tensor, input: Any, others: Any, *_: Any, **__: Any) -> None:
    """Every entry is compared with all entries of another tensor."""
    for tensor in tensors_in(others):
        trace.use(tensor)
        trace.pin(trace.labels(tensor), "every entry is compared with all of it")
    trace.set(out, trace.labels(input) if isinstance(input, Tensor) else ())


def _valued(given: Any) -> None:
    """Note that all sizes among the arguments are used as values."""
    if isinstance(given, Tracked):
        given.as_value()
    elif isinstance(given, list | tuple):
        for value in given:
            _valued(value)


@rule("tril", "triu", "tril_", "triu_", "fill_diagonal_")
def triangle(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """Entries on one side of the diagonal, or on it, are set: it depends on positions of units."""
    trace.use(input)
    for label in trace.labels(input):
        if {input.ndim - 2, input.ndim - 1} & set(label.dims):
            trace.pin(label.ids, "it is cut to a triangle or has its diagonal filled")
    trace.set(out, trace.labels(input))
