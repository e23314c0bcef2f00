# SPDX-License-Identifier: GPL-2.0
"""From pairs of samples to a ratio and how far it can be trusted."""

import dataclasses
import random
import statistics
from collections.abc import Sequence

RESAMPLES = 2000
CONFIDENCE = 0.95
# Any fixed number: the same samples shall give the same interval.
SEED = 20


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A median, and the interval that holds it with 95 % confidence."""

    median: float
    low: float
    high: float


def of_pairs(pairs: Sequence[tuple[float, float]], higher_is_better: bool) -> Ratio:
    """How much better the second members are than the first: the median of the pairwise ratios.

    The interval is the percentile bootstrap's, with pairs as what is drawn.
    """
    ratios = [better(baseline, sample, higher_is_better) for baseline, sample in pairs]
    draw = random.Random(SEED)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    low, high = (medians[round(share * (RESAMPLES - 1))] for share in (tail, 1 - tail))
    return Ratio(statistics.median(ratios), low, high)


def better(baseline: float, sample: float, higher_is_better: bool) -> float:
    """Above 1 if the sample is better; where both are nothing they are equal."""
    over, under = (sample, baseline) if higher_is_better else (baseline, sample)
    if over == under:
        return 1.0
    return over / under if under else float("inf")


def spread(samples: Sequence[float]) -> float:
    """Between the extremes, as a part of the median."""
    middle = statistics.median(samples)
    return (max(samples) - min(samples)) / middle if middle else 0.0
