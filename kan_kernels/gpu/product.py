"""Matrix products of tiles in the precision asked for, `MODE` in the code:

- "fp16x3": float32 as the sum of two float16, three products; as accurate as float32's own product. Tiles come scaled by
  powers of two (`power_of_two`), so that nothing overflows and 40 bits below the largest value still count.
- "tf32", "bf16", "fp16": one product of rounded operands; sums are float32.
- "tf32x3", "ieee": Triton's own products of float32 tiles, for `tiny.py`.
- "fp64": float64 throughout.
"""

import os

import triton
import triton.language as tl

# Under the interpreter bfloat16 is held as integers, so that a product of it is garbage: operands become float32.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


@triton.jit
def operand(a, MODE: tl.constexpr):
    """A tile as an operand of the tensor cores."""
    if MODE == "bf16":
        a = a.to(tl.bfloat16)
    elif MODE == "fp16" or MODE == "fp16x3":
        a = a.to(tl.float16)
    elif MODE == "tf32":
        # What the tensor cores do to it anyway, here so that the interpreter does it too, and because Triton 3.9 fails on a
        # reshaped float32 operand of Hopper's products.
        a = (a.to(tl.float32).to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    elif MODE != "fp64":
        a = a.to(tl.float32)
    return a


@triton.jit
def rest(a, high):
    """What `high`, a rounded to float16, leaves of a."""
    return (a - high.to(tl.float32)).to(tl.float16)


@triton.jit
def finite(a):
    """a, with 0 for infinities: their products with what rounding left of others are NaN, or of the wrong sign."""
    return tl.where(tl.abs(a) < float("inf"), a, 0.0).to(a.dtype)


@triton.jit
def dot(a, b, acc, MODE: tl.constexpr):
    """acc + a b for operands of one type."""
    if INTERPRETED and MODE != "fp64":
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    elif MODE == "fp64":
        acc = tl.dot(a, b, acc, out_dtype=tl.float64)
    elif MODE == "tf32" or MODE == "tf32x3" or MODE == "ieee":
        acc = tl.dot(a, b, acc, input_precision=MODE)
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def split_dot(a, b, b_rest, acc, MODE: tl.constexpr):
    """acc + a b for a tile a in float32 (float64) and b an operand, in "fp16x3" split already. Small terms come first."""
    high = operand(a, MODE)
    if MODE == "fp16x3":
        acc = dot(high, b_rest, acc, MODE)
        acc = dot(rest(a, high), b, acc, MODE)
    return dot(high, b, acc, MODE)


@triton.jit
def power_of_two(bound):
    """A power of two that brings values up to `bound` (float32, >= 0) below 2^15; and its inverse. Any for a bound of 0."""
    exponent = (bound.to(tl.int32, bitcast=True) >> 23) & 255
    scale = tl.minimum(tl.maximum(268 - exponent, 1), 253)
    return (scale << 23).to(tl.float32, bitcast=True), ((254 - scale) << 23).to(tl.float32, bitcast=True)


@triton.jit
def unscaled(acc, inverse, other):
    """acc times two inverse scales that broadcast: the smaller first, so that nothing overflows on the way."""
    return acc * tl.minimum(inverse, other) * tl.maximum(inverse, other)
