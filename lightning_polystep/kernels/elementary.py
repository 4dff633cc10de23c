"""The exponential and the logarithm of vectors: a call of libm per lane would cost more than all the rest of a loss.

Both are made of the exactly rounded operations of :mod:`~lightning_polystep.kernels.simd`, so that their results are
the same on every machine. Constants are literals, as numba compiles them in.
"""

from typing import Any

from lightning_polystep.kernels.simd import borrowing, power_of_two, splat, where


@borrowing
def exp(x: Any) -> Any:
    """Return e^x of float64 lanes at most 700, within 2 units in the last place; e^-700, almost 0, below -700."""
    floor = splat(-700.0)
    x = where(floor >= x, floor, x)
    # Adding 1.5 * 2^52 leaves no bits for a fraction: x = k log 2 + r, |r| <= log(2) / 2, and log 2 in two parts.
    magic = splat(6755399441055744.0)
    shifted = x * splat(1.4426950408889634) + magic
    k = shifted - magic
    r = (x - k * splat(0.6931471803691238)) - k * splat(1.9082149292705877e-10)
    # The Taylor polynomial of degree 13, in pairs, because a chain of 13 steps would wait for each of them.
    r2 = r * r
    r4 = r2 * r2
    r8 = r4 * r4
    p0 = splat(1.0) + r
    p2 = splat(1 / 2) + r * splat(1 / 6)
    p4 = splat(1 / 24) + r * splat(1 / 120)
    p6 = splat(1 / 720) + r * splat(1 / 5040)
    p8 = splat(1 / 40320) + r * splat(1 / 362880)
    p10 = splat(1 / 3628800) + r * splat(1 / 39916800)
    p12 = splat(1 / 479001600) + r * splat(1 / 6227020800)
    low = (p0 + r2 * p2) + r4 * (p4 + r2 * p6)
    high = (p8 + r2 * p10) + r4 * p12
    return (low + r8 * high) * power_of_two(shifted)


@borrowing
def log1p(y: Any) -> Any:
    """Return log(1 + y) of float64 lanes from 0 to 1, within 4 units in the last place."""
    # 2 artanh(t), t at most 1/3, of which 17 terms are enough.
    t = y / (splat(2.0) + y)
    z = t * t
    z2 = z * z
    z4 = z2 * z2
    z8 = z4 * z4
    s0 = (splat(1.0) + z * splat(1 / 3)) + z2 * (splat(1 / 5) + z * splat(1 / 7))
    s4 = (splat(1 / 9) + z * splat(1 / 11)) + z2 * (splat(1 / 13) + z * splat(1 / 15))
    s8 = (splat(1 / 17) + z * splat(1 / 19)) + z2 * (splat(1 / 21) + z * splat(1 / 23))
    s12 = (splat(1 / 25) + z * splat(1 / 27)) + z2 * (splat(1 / 29) + z * splat(1 / 31))
    series = (s0 + z4 * s4) + z8 * ((s8 + z4 * s12) + z8 * splat(1 / 33))
    return (t + t) * series
