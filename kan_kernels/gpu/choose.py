"""Which kernel with which tiles for which problem: functions of the shapes, so that the same problem gives the same bits.

Sizes are N rows, I in_features, O out_features, M bases of a feature.
"""

from dataclasses import dataclass

import triton

OLD_TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9)
WANTED_PROGRAMS = 264  # two for each of an H100's multiprocessors; not asked of the device, since sums are split by it
SCRATCH_BYTES = 64 << 20
WIDE_SCRATCH_BYTES = 256 << 20
WIDE_OUTPUTS = 1024
UNROLLED_BASES = 16  # beyond, a forward's code would get long


@dataclass(frozen=True)
class Tiles:
    """The sizes of a program's tiles; MC bases times BI features are the columns of one."""

    BN: int
    BO: int
    BI: int
    MC: int
    STAGES: int  # loads in flight; 1 where pipelining gathers or many products would take more registers than there are
    num_warps: int

    def options(self, amd: bool = False) -> dict[str, int]:
        """The kernels' constants. AMD's 64 KB of shared memory do not hold the loads of two stages."""
        return vars(self) | ({"STAGES": 1} if amd else {})


def regime(operator: str, mode: str, N: int, I: int, O: int, K: int, M: int) -> str:
    """The way of computing an operator:

    "wide": bases in memory and the vendor's product; on paper this wins from 700 to 1100 outputs on. Not for the accuracy of
        float32, since the vendor's products of half types sum too coarsely for it.
    "tiny": `spline_backward` in one pass over x and g, when weights and gradients fit one program.
    "fused": everything else.
    """
    if O >= WIDE_OUTPUTS and I >= 64 and N >= 1024 and mode in ("tf32", "bf16", "fp16"):
        return "wide"
    if operator == "spline_backward" and I <= 8 and M <= 8 and O <= 32 and K >= 1 and mode != "fp64":
        return "tiny"
    return "fused"


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(least: int, low: int, high: int) -> int:
    """The smallest power of two of at least `least`, within low ... high."""
    return min(high, max(low, 1 << (least - 1).bit_length()))


def forward_unrolled(I: int, M: int, weighted: bool, blackwell: bool) -> int:
    """How many bases to unroll, a product each: 0 to take several of them as the columns of one tile.

    An old Triton cannot unroll with w of half types, and on Blackwell would take more tensor memory than there is.
    """
    if OLD_TRITON and (weighted or blackwell):
        return 0
    return M if I >= 16 and M <= UNROLLED_BASES else 0


def forward_features(I: int, unrolled: int) -> int:
    """BI, the same for every mode and way: the sum over features is split by blocks of it."""
    return 16 if unrolled else 8 if I > 2 else 2


def forward_bases(unrolled: int) -> int:
    """MC."""
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
    """Into how many parts to split the sum over features, and the blocks of BI in each."""
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
    """Half of the columns for one or two features; more outputs would not stay in registers as three tf32."""
    return Tiles(32, 32, 2 if I <= 2 else 8, 8, 1, 8)


def tiny_split(N: int) -> tuple[int, int]:
    """Parts of the sum over rows, and rows of a part."""
    blocks = ceil_div(N, 32)
    of_part = ceil_div(blocks, min(WANTED_PROGRAMS, max(1, blocks // 4)))
    return ceil_div(blocks, of_part), of_part * 32


# Of the kernels that read or write bases in memory
BASES_TILES = Tiles(BN=32, BO=0, BI=16, MC=8, STAGES=1, num_warps=4)


def wide_part(count: int, bytes_of_one: int) -> int:
    """Rows, or features with all their rows, of a part of the bases that fits the scratch."""
    fit = WIDE_SCRATCH_BYTES // bytes_of_one
    return min(count, max(1, fit // 128 * 128 if fit > 128 else fit))


def backward_weight_split(mode: str, N: int, I: int, O: int, M: int) -> tuple[int, int, int]:
    """Features of a launch, parts of the sum over rows, and rows of a part: so that the partial sums fit the scratch."""
    feature_bytes = (M + 1) * O * (8 if mode == "fp64" else 4)
    features = max(1, min(I, SCRATCH_BYTES // feature_bytes))
    programs = ceil_div(features, 16) * ceil_div(M, 8) * ceil_div(O, 128)
    blocks = ceil_div(N, 32)
    fit = max(1, SCRATCH_BYTES // (feature_bytes * features))
    of_part = ceil_div(blocks, min(splits(programs, blocks), fit))
    return features, ceil_div(blocks, of_part), of_part * 32


def splits(programs: int, blocks: int) -> int:
    """Into how many parts to split a sum over `blocks` blocks, four or more in each, when there are few programs."""
    return max(1, min(ceil_div(WANTED_PROGRAMS, programs), blocks // 4))
