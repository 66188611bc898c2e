"""Matrix products of tiles. `MODE` selects the precision:

- "fp16x3": three products, with float32 operands split into two float16 each; as accurate as a float32 product. Tiles are
  scaled by powers of two (`power_of_two_scale`) to avoid overflow and to keep 40 bits below the largest value.
- "tf32", "bf16", "fp16": one product of rounded operands with float32 sums.
- "tf32x3", "ieee": Triton's products of float32 tiles, for `direct.py` and `edge_l1.py`.
- "fp64": float64 throughout.
"""

import os

import triton
import triton.language as tl

# The interpreter stores bfloat16 as integers, which makes its products wrong. There, operands are converted to float32.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


@triton.jit
def operand(a, MODE: tl.constexpr):
    """Convert a tile to an operand of the tensor cores."""
    if MODE == "bf16":
        a = a.to(tl.bfloat16)
    elif MODE == "fp16" or MODE == "fp16x3":
        a = a.to(tl.float16)
    elif MODE == "tf32":
        # Tensor cores truncate in the same way. This line makes the interpreter agree, and avoids a failure of Triton 3.9 with
        # reshaped float32 operands on Hopper.
        a = (a.to(tl.float32).to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    elif MODE != "fp64":
        a = a.to(tl.float32)
    return a


@triton.jit
def rest(a, high):
    """Return the rounding error of `high`, which is a rounded to float16."""
    return (a - high.to(tl.float32)).to(tl.float16)


@triton.jit
def finite(a):
    """Replace infinities with 0, since their products with rounding errors are NaN or have the wrong sign."""
    return tl.where(tl.abs(a) < float("inf"), a, 0.0).to(a.dtype)


@triton.jit
def dot(a, b, acc, MODE: tl.constexpr):
    """Return acc + a b for operands of one type."""
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
    """Return acc + a b for a float32 (float64) tile a and an operand b (split for "fp16x3"). Small terms are added first."""
    high = operand(a, MODE)
    if MODE == "fp16x3":
        acc = dot(high, b_rest, acc, MODE)
        acc = dot(rest(a, high), b, acc, MODE)
    return dot(high, b, acc, MODE)


@triton.jit
def power_of_two_scale(bound):
    """Return a power of two that scales values up to `bound` (float32, >= 0) below 2^15, and its inverse."""
    exponent = (bound.to(tl.int32, bitcast=True) >> 23) & 255
    scale = tl.minimum(tl.maximum(268 - exponent, 1), 253)
    return (scale << 23).to(tl.float32, bitcast=True), ((254 - scale) << 23).to(tl.float32, bitcast=True)


@triton.jit
def unscaled(acc, inverse, other):
    """Multiply acc by two inverse scales (broadcast), the smaller first to avoid overflow."""
    return acc * tl.minimum(inverse, other) * tl.maximum(inverse, other)
