"""Sixteen numbers as one value for numba: loops over classes or candidates whose state stays in registers.

LLVM vectorizes a plain inner loop over classes too, but keeps the state of the loop over time in memory and checks
before each step whether the arrays overlap. Written with these vectors the same loop is twice as fast.

A :class:`Vector` exists only inside functions that numba compiles. It supports ``+``, ``-``, ``*``, ``/``, ``>=`` and
``!=``, lane by lane, each rounded as IEEE 754 asks (no fused multiply-add, no reassociation), so results equal those
of torch.
"""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils
from numba.extending import models, overload, register_model

LANES = 16

# Numba recompiles a cached function when its own file changed, not when a file changed from which it calls.
_SOURCES = tuple((path.name, path.stat().st_mtime_ns) for path in sorted(Path(__file__).parent.rglob("*.py")))


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return ``numba.njit(cache=True, **options)`` with a cache that is stale once any file of the kernels changed."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher: Any = njit(cache=True, **options)(function)
        file = dispatcher._cache._cache_file
        file._source_stamp = (file._source_stamp, _SOURCES)
        return dispatcher

    return decorate


# Compiles a function that only reads and writes arrays which its caller owns, into its caller. Numba would count
# references to each view of an array and each array in a tuple, by atomic operations that took half of the time and
# kept threads from scaling; and a call would copy a hundred words of array headers.
borrowing = compiled(_nrt=False, forceinline=True)

# Numba's own type for an intrinsic asks the caller for its first argument too, which numba provides.
intrinsic: Any = extending.intrinsic

_ELEMENTS = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.boolean: ir.IntType(1),
}


class Vector(types.Type):
    """The numba type of ``LANES`` numbers of one dtype."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")

    @property
    def llvm(self) -> ir.VectorType:
        """The LLVM type of the value."""
        return ir.VectorType(_ELEMENTS[self.dtype], LANES)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


@intrinsic
def load(typing: Any, array: types.Array, offset: types.Integer) -> Any:
    """Read the lanes from ``offset`` on, counted in elements of a C-contiguous array of any shape."""
    vector = Vector(array.dtype)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.load(_pointer(context, builder, signature.args[0], arguments, vector), align=_align(vector))

    return vector(array, types.intp), generate


@intrinsic
def store(typing: Any, array: types.Array, offset: types.Integer, value: Vector) -> Any:
    """Write the lanes from ``offset`` on, counted in elements of a C-contiguous array of any shape."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        pointer = _pointer(context, builder, signature.args[0], arguments[:2], value)
        builder.store(arguments[2], pointer, align=_align(value))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def element(typing: Any, array: types.Array, offset: types.Integer) -> Any:
    """Read one number of a C-contiguous array of any shape."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(data, [arguments[1]]))

    return array.dtype(array, types.intp), generate


@intrinsic
def put(typing: Any, array: types.Array, offset: types.Integer, number: types.Type) -> Any:
    """Write one number of a C-contiguous array of any shape."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.store(arguments[2], builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), generate


@intrinsic
def splat(typing: Any, number: types.Type) -> Any:
    """Give every lane the same number."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        blank = ir.Constant(signature.return_type.llvm, ir.Undefined)
        head = builder.insert_element(blank, arguments[0], _index(0))
        return builder.shuffle_vector(head, blank, _indices([0] * LANES))

    return Vector(number)(number), generate


@intrinsic
def where(typing: Any, mask: Vector, yes: Vector, no: Vector) -> Any:
    """Choose lane by lane."""
    return yes(mask, yes, no), lambda context, builder, signature, arguments: builder.select(*arguments)


@intrinsic
def increment(typing: Any, counts: Vector, mask: Vector) -> Any:
    """Add 1 to the integer lanes that ``mask`` selects."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.add(arguments[0], builder.zext(arguments[1], counts.llvm))

    return counts(counts, mask), generate


@intrinsic
def mark(typing: Any, words: Vector, mask: Vector, flag: Vector) -> Any:
    """Set the bits of ``flag`` in the integer lanes that ``mask`` selects."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        nothing = ir.Constant(words.llvm, [0] * LANES)
        return builder.or_(arguments[0], builder.select(arguments[1], arguments[2], nothing))

    return words(words, mask, flag), generate


@intrinsic
def bits(typing: Any, mask: Vector) -> Any:
    """Return the lanes of a mask as the low bits of an int64, the first lane as the lowest."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.zext(builder.bitcast(arguments[0], ir.IntType(LANES)), ir.IntType(64))

    return types.int64(mask), generate


@intrinsic
def lowest_bit(typing: Any, word: types.Integer) -> Any:
    """Return the index of the lowest bit that is set in an int64 other than 0."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


@intrinsic
def differ(typing: Any, a: Vector, b: Vector) -> Any:
    """Tell whether any integer lane differs."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        bits = builder.bitcast(builder.icmp_unsigned("!=", *arguments), ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(a, b), generate


@intrinsic
def lookup(typing: Any, table: types.Array, offset: types.Integer, rows: Vector) -> Any:
    """Read the element ``offset + row`` of a C-contiguous array of any shape for every integer lane."""
    vector = Vector(table.dtype)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        data = builder.gep(data, [arguments[1]])
        found = ir.Constant(vector.llvm, ir.Undefined)
        for lane in range(LANES):
            row = builder.extract_element(arguments[2], _index(lane))
            found = builder.insert_element(found, builder.load(builder.gep(data, [row])), _index(lane))
        return found

    return vector(table, types.intp, rows), generate


@intrinsic
def to_float64(typing: Any, value: Vector) -> Any:
    """Convert int32 or float32 lanes to float64, exactly."""
    vector = Vector(types.float64)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        if value == vector:
            return arguments[0]
        convert = builder.sitofp if value.dtype in types.integer_domain else builder.fpext
        return convert(arguments[0], vector.llvm)

    return vector(value), generate


@intrinsic
def to_int32(typing: Any, value: Vector) -> Any:
    """Convert float lanes to int32, towards 0."""
    vector = Vector(types.int32)
    return vector(value), lambda context, builder, signature, arguments: builder.fptosi(arguments[0], vector.llvm)


@intrinsic
def as_float(typing: Any, value: Vector, like: Vector) -> Any:
    """Convert int32 lanes to the dtype of the float lanes of ``like``."""
    return like(value, like), lambda context, builder, signature, arguments: builder.sitofp(arguments[0], like.llvm)


@intrinsic
def power_of_two(typing: Any, exponent: Vector) -> Any:
    """Return 2^k for float64 lanes that hold 1.5 * 2^52 + k, with k from -1022 to 1023: their last bits are k."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        integers = ir.VectorType(ir.IntType(64), LANES)
        bits = builder.shl(builder.bitcast(arguments[0], integers), ir.Constant(integers, [52] * LANES))
        return builder.bitcast(builder.add(bits, ir.Constant(integers, [1023 << 52] * LANES)), exponent.llvm)

    return exponent(exponent), generate


@intrinsic
def highest(typing: Any, value: Vector) -> Any:
    """Return the highest of the float lanes."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _tree(builder, arguments[0], lambda a, b: builder.select(builder.fcmp_ordered(">=", a, b), a, b))

    return value.dtype(value), generate


@intrinsic
def total(typing: Any, value: Vector) -> Any:
    """Sum float lanes as a balanced tree, the same on every machine."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _tree(builder, arguments[0], builder.fadd)

    return value.dtype(value), generate


def _tree(builder: ir.IRBuilder, part: ir.Value, join: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    width = LANES
    while width > 1:
        width //= 2
        low = builder.shuffle_vector(part, part, _indices(range(width)))
        high = builder.shuffle_vector(part, part, _indices(range(width, 2 * width)))
        part = join(low, high)
    return builder.extract_element(part, _index(0))


def _pointer(context: Any, builder: ir.IRBuilder, array: types.Array, arguments: Any, vector: Vector) -> ir.Value:
    if array.layout != "C":
        raise TypeError("load and store need a C-contiguous array")
    data = context.make_array(array)(context, builder, arguments[0]).data
    return builder.bitcast(builder.gep(data, [arguments[1]]), vector.llvm.as_pointer())


def _align(vector: Vector) -> int:
    return 4 if vector.dtype in (types.float32, types.int32) else 8


def _index(value: int) -> ir.Constant:
    return ir.Constant(cgutils.int32_t, value)


def _indices(values: Any) -> ir.Constant:
    return ir.Constant(ir.VectorType(cgutils.int32_t, len(values)), list(values))


def _binary(emit: Callable[[ir.IRBuilder, list[ir.Value]], ir.Value], truth: bool = False) -> Any:
    @intrinsic
    def operation(typing: Any, a: Vector, b: Vector) -> Any:
        result = Vector(types.boolean) if truth else a
        return result(a, b), lambda context, builder, signature, arguments: emit(builder, arguments)

    return operation


def _support(symbol: Callable[[Any, Any], Any], operation: Any) -> None:
    @overload(symbol)
    def implementation(a, b):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - numba wants the parameters of the lambda, to the letter
        if isinstance(a, Vector) and a == b:
            return lambda a, b: operation(a, b)  # noqa: PLW0108 - numba compiles a function, not an intrinsic
        return None


_support(operator.add, _binary(lambda builder, arguments: builder.fadd(*arguments)))
_support(operator.sub, _binary(lambda builder, arguments: builder.fsub(*arguments)))
_support(operator.mul, _binary(lambda builder, arguments: builder.fmul(*arguments)))
_support(operator.truediv, _binary(lambda builder, arguments: builder.fdiv(*arguments)))
_support(operator.ge, _binary(lambda builder, arguments: builder.fcmp_ordered(">=", *arguments), truth=True))
_support(operator.ne, _binary(lambda builder, arguments: builder.fcmp_unordered("!=", *arguments), truth=True))
