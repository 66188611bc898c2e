"""Matrix products of operands in memory.

For "fp16x3" this is a kernel, since the vendor's products of half types are not accurate enough: tensor cores truncate sums,
and these are long. The other modes use the vendor's product.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import heuristics
from .heuristics import ceil_div
from .matmul import dot, unscaled
from .prepare import OPTIONS, is_hopper


class Operand(NamedTuple):
    """A matrix; for fp16x3 the sum of two, times the inverses of the scales of its rows or columns, or of one scale."""

    high: Tensor
    low: Tensor
    inverse: Tensor

    def turned(self) -> "Operand":
        return Operand(self.high.t(), self.low.t(), self.inverse)


@triton.jit(do_not_specialize=["blocks"])
def product_kernel(
    a,  # (R, L), contiguous along l, or along r if TURNED
    a_low,  # as a
    a_stride,  # of the other dimension
    a_inverse,  # (R,)
    b,  # (L, C)
    b_low,  # as b
    b_stride_l,
    b_stride_c,
    b_inverse,  # (C,), or (1,) with a stride of 0
    b_inverse_stride,
    c,  # out (S, R, C)
    R,
    C,
    L,
    blocks,  # of BL columns, per program
    TURNED: tl.constexpr,  # whether a is contiguous along r; then its tiles are loaded so, and transposed
    BR: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
    STAGES: tl.constexpr,
):
    columns = tl.cdiv(C, BC)
    r = (tl.program_id(0) // columns).to(tl.int64) * BR + tl.arange(0, BR)
    k = (tl.program_id(0) % columns).to(tl.int64) * BC + tl.arange(0, BC)
    begin = tl.program_id(1).to(tl.int64) * blocks * BL
    end = tl.minimum(begin + blocks * BL, L)
    acc = tl.zeros((BR, BC), tl.float32)
    for l0 in tl.range(begin, end, BL, num_stages=STAGES):
        l = l0 + tl.arange(0, BL)
        mask_b = (l < end)[:, None] & (k < C)[None, :]
        at_b = l[:, None] * b_stride_l + k[None, :] * b_stride_c
        if TURNED:
            mask_a = (l < end)[:, None] & (r < R)[None, :]
            at_a = l[:, None] * a_stride + r[None, :]
            a_high = tl.trans(tl.load(a + at_a, mask=mask_a, other=0.0))
            a_rest = tl.trans(tl.load(a_low + at_a, mask=mask_a, other=0.0))
        else:
            mask_a = (r < R)[:, None] & (l < end)[None, :]
            at_a = r[:, None] * a_stride + l[None, :]
            a_high = tl.load(a + at_a, mask=mask_a, other=0.0)
            a_rest = tl.load(a_low + at_a, mask=mask_a, other=0.0)
        b_high = tl.load(b + at_b, mask=mask_b, other=0.0)
        b_rest = tl.load(b_low + at_b, mask=mask_b, other=0.0)
        # Tensor cores truncate sums, so each tile is accumulated outside of them, and small terms are added first.
        tile = dot(a_high, b_rest, tl.zeros((BR, BC), tl.float32), "fp16x3")
        tile = dot(a_rest, b_high, tile, "fp16x3")
        acc += dot(a_high, b_high, tile, "fp16x3")
    of_rows = tl.load(a_inverse + r, mask=r < R, other=1.0)
    of_columns = tl.load(b_inverse + k * b_inverse_stride, mask=k < C, other=1.0)
    acc = unscaled(acc, of_rows[:, None], of_columns[None, :])
    at = c + (tl.program_id(1).to(tl.int64) * R + r[:, None]) * C + k[None, :]
    tl.store(at, acc, mask=(r < R)[:, None] & (k < C)[None, :])


def product(a: Operand, b: Operand, mode: str, out: Tensor | None = None) -> Tensor:
    """Return a b in float32, or write it to `out`, which is contiguous."""
    if mode != "fp16x3":
        if out is not None and out.dtype is a.high.dtype is torch.float32:
            return torch.mm(a.high, b.high, out=out)
        result = _vendors_product(a.high, b.high)
        return result if out is None else out.copy_(result)
    (R, L), C = a.high.shape, b.high.shape[1]
    tiles = heuristics.product_tiles(C, is_hopper(a.high), amd=torch.version.hip is not None)
    programs = ceil_div(R, tiles["BR"]) * ceil_div(C, tiles["BC"])
    blocks = ceil_div(L, tiles["BL"])
    of_part = ceil_div(blocks, heuristics.splits(programs, blocks))
    S = ceil_div(blocks, of_part)
    c = out if out is not None and S == 1 else a.inverse.new_empty(S, R, C)
    turned = a.high.stride(0) == 1
    product_kernel[(programs, S)](
        a.high, a.low, a.high.stride(1 if turned else 0), a.inverse, b.high, b.low, *b.high.stride(),
        b.inverse, 0 if b.inverse.numel() == 1 else 1, c, R, C, L, of_part, TURNED=turned, **tiles, **OPTIONS,
    )  # fmt: skip
    if S > 1:
        return torch.sum(c, 0, out=out) if out is not None else c.sum(0)
    return c if out is not None else c[0]


def _vendors_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of operands in float32."""
    if a.dtype is torch.float32:
        return torch.mm(a, b)
    if a.device.type == "cpu":
        return torch.mm(a.float(), b.float())  # for Triton's interpreter
    return torch.mm(a, b, out_dtype=torch.float32)
