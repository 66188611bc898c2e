"""Choice of kernels and tiles. It depends only on shapes, modes and the architecture: the same problem gives the same bits.

Sizes are N rows, I in_features, O out_features, M bases of a feature. The tiles for Hopper were timed on an H200. The others
were chosen for few spilled registers, and were not timed.
"""

from dataclasses import dataclass

import triton

OLD_TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9)
WANTED_PROGRAMS = 264  # two per multiprocessor of an H100; not queried from the device, since it determines the order of sums
SCRATCH_BYTES = 64 << 20
WIDE_SCRATCH_BYTES = 256 << 20
WIDE_ELEMENTS = 1 << 22  # the least N * I of "wide"; its launches cost more than they gain below
DIRECT_PRODUCTS = 1 << 28  # the largest N * I * O * M of "direct", and the largest N * I; see `is_direct`
DIRECT_INPUTS = 1 << 19
SUMMED_PARTS = 16  # the most partial sums that `finish_kernel` adds
UNROLLED_BASES = 16  # the largest number of bases to unroll, which limits the code size


@dataclass(frozen=True)
class Tiles:
    """The sizes of a program's tiles. A tile of bases has MC * BI columns: MC bases of BI features."""

    BN: int
    BO: int
    BI: int
    MC: int
    STAGES: int  # pipeline stages of loads; 1 where pipelining gathers or many products would exceed the registers
    num_warps: int

    def options(self, amd: bool = False) -> dict[str, int]:
        """Return the kernels' constants. AMD's 64 KB of shared memory are too small for two stages."""
        return vars(self) | ({"STAGES": 1} if amd else {})


def has_wide(operator: str, mode: str, K: int, D: int, weighted: bool) -> bool:
    """Return whether "wide" supports an operator. With fp16x3 it has no scales for derivatives and weighted bases."""
    if operator == "spline_backward":
        return False
    return mode != "fp64" and D <= K and (mode != "fp16x3" or operator == "spline_backward_input" or not (D or weighted))


def prefers_wide(operator: str, mode: str, N: int, I: int, O: int, M: int) -> bool:
    """Return whether "wide" is faster than "fused", from times on an H200 in CUDA graphs (K = 3, G = 5).

    Fused and wide, in milliseconds, for 65536 rows: forward 256→256 1.20 and 0.75 (fp16x3), 0.48 and 0.46 (tf32), 128→128 0.30
    and 0.34 (fp16x3); gradient of x 128→128 0.49 and 0.42 (fp16x3), 0.28 and 0.27 (tf32), 64→64 0.19 and 0.21 (fp16x3),
    784→10 6.5 and 2.1 (fp16x3), 2.2 and 1.7 (tf32); gradient of the weights 64→64 0.23 and 0.20 (fp16x3), 0.15 and 0.11
    (tf32), 32→32 0.11 and 0.13 (fp16x3), 784→10 2.8 and 1.7 (fp16x3), 1.0 and 1.6 (tf32). With 23 bases (G = 20), forward
    256→256: 3.87 fused (tf32) and 2.12 wide (fp16x3, whose products take longer than those of tf32).
    """
    if N * I < WIDE_ELEMENTS:
        return N * I >= WIDE_ELEMENTS // 4 and O >= 1024
    if operator == "spline_forward":
        return (128 if mode == "fp16x3" or M > UNROLLED_BASES else 256) < O
    unaligned = O % 8 != 0  # "fused" loads rows of such lengths slowly
    if operator == "spline_backward_input":
        return (64 if mode == "fp16x3" else 128) < O or unaligned
    return O >= 64 or (unaligned and mode == "fp16x3")


def is_direct(N: int, I: int, O: int, M: int) -> bool:
    """Return whether a problem is small enough for "direct".

    A step on an H200 in microseconds, direct and fused, in a CUDA graph and launched one by one (K = 3, G = 5): 64→64 on 1024
    rows 48 and 89, 730 and 1940; on 4096 rows 103 and 100, 740 and 2190; 784→64 on 256 rows 101 and 119, 890 and 2430; 2→5 on
    1000 rows 29 and 78, 1100 and 2100; 64→64 on 16384 rows 390 and 175, 1000 and 2050; 8→32 on 65536 rows 470 and 157, 930
    and 1980. So the limits cost some time in graphs, and save more where the host is the bottleneck.
    """
    return N * I * O * M <= DIRECT_PRODUCTS and N * max(I, 16) <= DIRECT_INPUTS


def regime(operator: str, mode: str, N: int, I: int, O: int, K: int, M: int, D: int, weighted: bool) -> str:
    """Return the implementation of an operator.

    "direct": few launches, for small problems.
    "wide": bases in memory and plain matrix products.
    "fused": all other problems.
    """
    if is_direct(N, I, O, M):
        return "direct"
    if has_wide(operator, mode, K, D, weighted) and prefers_wide(operator, mode, N, I, O, M):
        return "wide"
    return "fused"


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_two(least: int, low: int, high: int) -> int:
    """Return the smallest power of two that is at least `least`, clamped to low ... high."""
    return min(high, max(low, 1 << (least - 1).bit_length()))


def forward_unrolled(I: int, M: int, weighted: bool, blackwell: bool) -> int:
    """Return the number of bases to unroll, with one product each, or 0 for tiles with several bases per feature.

    Triton before 3.9 cannot unroll with w of half types, and would exceed the tensor memory on Blackwell.
    """
    if OLD_TRITON and (weighted or blackwell):
        return 0
    return M if I >= 16 and M <= UNROLLED_BASES else 0


def forward_features(I: int, unrolled: int) -> int:
    """Return BI. It does not depend on mode and way, since the sum over features is split into blocks of BI."""
    return 16 if unrolled else 8 if I > 2 else 2


def forward_bases(unrolled: int) -> int:
    """Return MC."""
    return 1 if unrolled else 8


def forward_tiles(mode: str, way: str, I: int, O: int, unrolled: int, hopper: bool) -> Tiles:
    adaptive, BI, MC = way == "adaptive", forward_features(I, unrolled), forward_bases(unrolled)
    if mode == "fp64":
        return Tiles(32, 32, BI, MC, 1, 8)
    BO = 32 if O <= 32 else 128 if unrolled else 64
    if hopper and unrolled:  # 1.14 instead of 1.95 ms for 256→256 on 65536 rows in fp16x3, 0.35 instead of 0.41 in bf16
        return Tiles(64 if adaptive else 128, BO, BI, MC, 1 if adaptive else {"fp16x3": 1, "tf32": 2}.get(mode, 3), 8)
    BN = 64 if mode == "fp16x3" or adaptive or not unrolled else 128
    return Tiles(BN, BO, BI, MC, 1 if adaptive or (mode == "fp16x3" and not unrolled) else 2, 8)


def forward_split(N: int, I: int, O: int, unrolled: int) -> tuple[int, int]:
    """Return the number of parts of the sum over features, and the blocks of BI features per part."""
    blocks = ceil_div(I, forward_features(I, unrolled))
    programs = ceil_div(N, 64) * ceil_div(O, 128)
    of_program = ceil_div(blocks, splits(programs, blocks))
    return ceil_div(blocks, of_program), of_program


def backward_input_tiles(mode: str, way: str, hopper: bool) -> Tiles:
    if mode == "fp64":
        return Tiles(32, 32, 16, 4, 2, 4)
    if hopper:  # 1.5 instead of 3.3 ms for 256→256 on 65536 rows in fp16x3, 0.7 instead of 1.0 in bf16
        return Tiles(64, 32, 16, 8, 3, 4)
    return Tiles(64 if mode == "fp16x3" or (mode == "tf32" and way == "adaptive") else 128, 32, 16, 8, 2, 8)


def backward_weight_tiles(mode: str, way: str, O: int, hopper: bool) -> Tiles:
    if mode == "fp64":
        # Triton 3.6 compiles 4 warps to a kernel with wrong sums at degree 7.
        return Tiles(32, 32, 16, 4, 1 if way == "adaptive" else 2, 8)
    if hopper:  # 1.8 instead of 6.4 ms for 256→256 on 65536 rows in fp16x3, 0.8 instead of 1.3 in bf16
        return Tiles(64, next_power_of_two(O, 32, 128), 8, 8, 1, 4)
    BO = 32 if O <= 32 else 64 if mode == "fp16x3" else 128
    return Tiles(32, BO, 16, 8, 1 if way == "adaptive" else 2, 8 if BO >= 64 else 4)


def direct_forward_tiles(N: int, I: int, O: int) -> Tiles:
    """Return tiles of 16 features, since the base activation's product sums over at least 16.

    The smaller tiles take 27 us and the larger 39 for 64→64 on 1024 rows, but 76 and 51 for 784→64 on 256 rows.
    """
    if N * I * O <= 1 << 22:
        return Tiles(16, 32, 16, 4, 1, 8)
    return Tiles(32, 32 if O <= 32 else 64, 16, 2, 1, 8)


def direct_backward_tiles(mode: str, O: int, hopper: bool) -> Tiles:
    """Return larger tiles for Hopper: 108 instead of 139 us for 512→512 on 128 rows. Elsewhere they spill registers."""
    if hopper and mode != "fp64":
        return Tiles(64, 32 if O <= 32 else 64, 16, 4, 1, 8)
    return Tiles(32, 32, 16, 4, 1, 8)


def direct_forward_split(tiles: Tiles, N: int, I: int, O: int) -> tuple[int, int]:
    """Return the number of parts of the sum over features, and the blocks of BI features per part."""
    blocks = ceil_div(I, tiles.BI)
    of_part = ceil_div(blocks, splits(ceil_div(N, tiles.BN) * ceil_div(O, tiles.BO), blocks))
    return ceil_div(blocks, of_part), of_part


def direct_backward_split(tiles: Tiles, N: int, I: int, O: int, M: int) -> tuple[int, int]:
    """Return the number of parts of the sum over rows, and the rows per part."""
    blocks = ceil_div(N, tiles.BN)
    programs = ceil_div(I, tiles.BI) * (ceil_div(M, tiles.MC) + 1) * ceil_div(O, tiles.BO)
    of_part = ceil_div(blocks, min(SUMMED_PARTS, splits(programs, blocks)))
    return ceil_div(blocks, of_part), of_part * tiles.BN


ALIGNED = 16  # operands' rows in memory have a multiple of this length


def bases_tiles(features: int) -> dict[str, int]:
    """Return the tiles of the kernels that read or write bases in memory."""
    BI = next_power_of_two(features, 8, 64)
    return {"BN": 1024 // BI, "BI": BI, "num_warps": 4}


def product_tiles(columns: int, hopper: bool, amd: bool = False) -> dict[str, int]:
    """Return the tiles of the products of operands in memory, as large as the architecture's shared memory allows."""
    BC, stages = next_power_of_two(columns, 32, 128), 1 if amd else 3
    return {"BR": 128, "BC": BC, "BL": 64 if hopper else 32, "STAGES": stages, "num_warps": 8}


def wide_part(count: int, bytes_of_one: int) -> int:
    """Return the number of rows (or features) per part, such that a part's bases fit the scratch."""
    fit = WIDE_SCRATCH_BYTES // bytes_of_one
    return min(count, max(1, fit // 128 * 128 if fit > 128 else fit))


def backward_weight_split(mode: str, N: int, I: int, O: int, M: int, hopper: bool) -> tuple[int, int, int]:
    """Return features per launch, parts of the sum over rows, and rows per part, such that partial sums fit the scratch."""
    feature_bytes = (M + 1) * O * (8 if mode == "fp64" else 4)
    features = max(1, min(I, SCRATCH_BYTES // feature_bytes))
    BI = backward_weight_tiles(mode, "uniform", O, hopper).BI
    programs = ceil_div(features, BI) * ceil_div(M, 8) * ceil_div(O, 128)
    blocks = ceil_div(N, 64)
    fit = max(1, SCRATCH_BYTES // (feature_bytes * features))
    of_part = ceil_div(blocks, min(splits(programs, blocks), fit))
    return features, ceil_div(blocks, of_part), of_part * 64


def splits(programs: int, blocks: int) -> int:
    """Return the number of parts, with at least four blocks each, of a sum over `blocks` blocks; 1 for many programs."""
    return max(1, min(ceil_div(WANTED_PROGRAMS, programs), blocks // 4))


EDGE_BLOCK = 64  # rows per block in `edge_split`
EDGE_COLUMNS = 16  # at least 16, the smallest sum of a product; eight bases and the base activation leave some unused


def edge_tiles(mode: str, backward: bool, O: int) -> Tiles:
    """Return the tiles of the edges' kernels. Gradients with tf32x3 need more registers: sign(phi) is an operand too."""
    if mode == "fp64":
        return Tiles(32, 32, 1, EDGE_COLUMNS, 1, 4)
    many = 64 if mode in ("tf32x3", "ieee") else 128
    if O <= 32 or (backward and many == 64):
        return Tiles(64, 32, 1, EDGE_COLUMNS, 1, 4)
    return Tiles(64, many, 1, EDGE_COLUMNS, 1, 8)


def edge_split(mode: str, N: int, I: int, O: int, weights: int) -> tuple[int, int, int]:
    """Return features per launch, parts of the sum over rows, and rows per part, such that partial sums fit the scratch."""
    feature_bytes = weights * O * (8 if mode == "fp64" else 4)
    features = max(1, min(I, SCRATCH_BYTES // feature_bytes))
    blocks = ceil_div(N, EDGE_BLOCK)
    fit = max(1, SCRATCH_BYTES // (feature_bytes * features))
    of_part = ceil_div(blocks, min(splits(features * ceil_div(O, 128), blocks), fit))
    return features, ceil_div(blocks, of_part), of_part * EDGE_BLOCK
