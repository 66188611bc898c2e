"""Time calls in alternation, so that noise of the machine affects all contenders equally."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SAMPLE_SECONDS = 0.005  # a sample repeats a quick call until it takes this long
FEWEST_SAMPLES = 3


@dataclass(frozen=True)
class Timing:
    """The statistics of a call, in seconds per call."""

    median: float
    min: float
    quartiles: tuple[float, float]  # the first and the third
    samples: int


def alternate(calls: Mapping[str, Callable[[], object]], rounds: int, budget: float) -> dict[str, Timing]:
    """Sample the calls in turn for `rounds` rounds, each in another random order.

    In a fixed order, the call after one with large tensors would always pay for the caches that these have emptied. With
    efficient-kan before it, an accelerated layer seemed up to 1.38 times as slow as the native one, and in the other order the
    native one as the accelerated one (64→64, 256 rows).

    A call that has used `budget` seconds skips the remaining rounds, but every call gets at least FEWEST_SAMPLES samples.
    """
    repeats = {name: max(1, math.ceil(SAMPLE_SECONDS / _warm_up(call))) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            taken = samples[name]
            if len(taken) < FEWEST_SAMPLES or sum(taken) * repeats[name] < budget:
                taken.append(_seconds(calls[name], repeats[name]))
    return {name: _timing(taken) for name, taken in samples.items()}


def _timing(taken: list[float]) -> Timing:
    low, _, high = statistics.quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else taken * 3
    return Timing(statistics.median(taken), min(taken), (low, high), len(taken))


def _warm_up(call: Callable[[], object]) -> float:
    """Call twice and return the seconds of the second call. The first one compiles and allocates."""
    call()
    return _seconds(call, 1)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
