"""Choice of kernels and tiles. It depends only on shapes and modes, so that the same problem gives the same bits.

Sizes are N rows, I in_features, O out_features, M bases of a feature.
"""

from dataclasses import dataclass

import triton

OLD_TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9)
WANTED_PROGRAMS = 264  # two per multiprocessor of an H100; not queried from the device, since it determines the order of sums
SCRATCH_BYTES = 64 << 20
WIDE_SCRATCH_BYTES = 256 << 20
WIDE_OUTPUTS = 1024
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


def regime(operator: str, mode: str, N: int, I: int, O: int, K: int, M: int) -> str:
    """Return the implementation of an operator.

    "wide": bases in memory and the vendor's matrix product. By estimate, it is faster from 700 to 1100 outputs on. It is not
        used for full float32 precision, since the vendor's products of half types are not accurate enough.
    "tiny": `spline_backward` in one pass over x and g, if weights and gradients fit one program.
    "fused": all other problems.
    """
    if O >= WIDE_OUTPUTS and I >= 64 and N >= 1024 and mode in ("tf32", "bf16", "fp16"):
        return "wide"
    if operator == "spline_backward" and I <= 8 and M <= 8 and O <= 32 and K >= 1 and mode != "fp64":
        return "tiny"
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


def forward_tiles(mode: str, way: str, I: int, O: int, unrolled: int) -> Tiles:
    adaptive, BI, MC = way == "adaptive", forward_features(I, unrolled), forward_bases(unrolled)
    if mode == "fp64":
        return Tiles(32, 32, BI, MC, 1, 8)
    BO = 32 if O <= 32 else 128 if unrolled else 64
    BN = 64 if mode == "fp16x3" or adaptive or not unrolled else 128
    stages = 1 if adaptive or (mode == "fp16x3" and not unrolled) else 2
    return Tiles(BN, BO, BI, MC, stages, 8)


def forward_split(N: int, I: int, O: int, unrolled: int) -> tuple[int, int]:
    """Return the number of parts of the sum over features, and the blocks of BI features per part."""
    blocks = ceil_div(I, forward_features(I, unrolled))
    programs = ceil_div(N, 64) * ceil_div(O, 128)
    of_program = ceil_div(blocks, splits(programs, blocks))
    return ceil_div(blocks, of_program), of_program


def backward_input_tiles(mode: str, way: str) -> Tiles:
    if mode == "fp64":
        return Tiles(32, 32, 16, 4, 2, 4)
    return Tiles(64 if mode == "fp16x3" or (mode == "tf32" and way == "adaptive") else 128, 32, 16, 8, 2, 8)


def backward_weight_tiles(mode: str, way: str, O: int) -> Tiles:
    widest = {"fp64": 32, "fp16x3": 64}.get(mode, 128)
    BO = 32 if O <= 32 else widest
    return Tiles(32, BO, 16, 4 if mode == "fp64" else 8, 1 if way == "adaptive" else 2, 8 if BO >= 64 else 4)


def tiny_tiles(I: int) -> Tiles:
    """Return fewer columns for one or two features. With tf32x3, tiles with more outputs would not stay in registers."""
    return Tiles(32, 32, 2 if I <= 2 else 8, 8, 1, 8)


def tiny_split(N: int) -> tuple[int, int]:
    """Return the number of parts of the sum over rows, and the rows per part."""
    blocks = ceil_div(N, 32)
    of_part = ceil_div(blocks, min(WANTED_PROGRAMS, max(1, blocks // 4)))
    return ceil_div(blocks, of_part), of_part * 32


# Tiles of the kernels that read or write bases in memory
BASES_TILES = Tiles(BN=32, BO=0, BI=16, MC=8, STAGES=1, num_warps=4)


def wide_part(count: int, bytes_of_one: int) -> int:
    """Return the number of rows (or features) per part, such that a part's bases fit the scratch."""
    fit = WIDE_SCRATCH_BYTES // bytes_of_one
    return min(count, max(1, fit // 128 * 128 if fit > 128 else fit))


def backward_weight_split(mode: str, N: int, I: int, O: int, M: int) -> tuple[int, int, int]:
    """Return features per launch, parts of the sum over rows, and rows per part, such that partial sums fit the scratch."""
    feature_bytes = (M + 1) * O * (8 if mode == "fp64" else 4)
    features = max(1, min(I, SCRATCH_BYTES // feature_bytes))
    programs = ceil_div(features, 16) * ceil_div(M, 8) * ceil_div(O, 128)
    blocks = ceil_div(N, 32)
    fit = max(1, SCRATCH_BYTES // (feature_bytes * features))
    of_part = ceil_div(blocks, min(splits(programs, blocks), fit))
    return features, ceil_div(blocks, of_part), of_part * 32


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
