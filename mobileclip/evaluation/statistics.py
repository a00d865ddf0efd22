"""Intervals and verdicts: bootstrap over evaluation samples, paired between two models, t intervals over seeds.

One draw of resamples serves every metric of every model, so each difference is paired by construction: in resample b
both models are scored on the same multiset of samples. A metric is a function of *weights*: how often each sample was
drawn. The point estimate is the same function at weights of one.

What these intervals cover is the choice of evaluation samples. They do not cover the training seed; `over_seeds` does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Verdict = Literal["better", "worse", "no evidence"]
Statistic = Callable[[Floats], Floats]
"""Weights [resamples, samples] to one value per resample [resamples]."""

_CHUNK = 64
_DIGITS = 12


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of one set of samples.

    Attributes:
        counts: uint16 [resamples, samples]: how often each sample was drawn; every row sums to `samples`.
        confidence: Coverage of the intervals made from them.
    """

    counts: NDArray[np.uint16]
    confidence: float


@dataclass(frozen=True)
class Estimate:
    """A metric with its bootstrap distribution and percentile interval (Efron and Tibshirani 1993, chapter 13).

    Attributes:
        value: The metric on all samples as they are.
        low: Lower end of the interval.
        high: Upper end.
        draws: The metric in each resample [resamples].
    """

    value: float
    low: float
    high: float
    draws: Floats


@dataclass(frozen=True)
class Comparison:
    """Student minus control on the same samples.

    Attributes:
        delta: Difference of the metric.
        low: Lower end of its paired interval.
        high: Upper end.
        p_value: Two-sided bootstrap p-value of "no difference".
        differing: Samples on which the two models differ.
        verdict: Of the student: `better`, `worse`, or `no evidence` that it is either.
    """

    delta: float
    low: float
    high: float
    p_value: float
    differing: int
    verdict: Verdict


@dataclass(frozen=True)
class Interval:
    """A mean with its interval."""

    mean: float
    low: float
    high: float
    deviation: float
    count: int


def draw_resamples(num_samples: int, *, resamples: int, confidence: float, seed: int) -> Resamples:
    """Draw `resamples` samples with replacement.

    Args:
        num_samples: Samples to draw from, at least 1.
        resamples: How many times.
        confidence: Coverage of later intervals, inside (0, 1).
        seed: Seed of numpy's PCG64.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    counts = np.empty((resamples, num_samples), dtype=np.uint16)
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn = rng.integers(0, num_samples, size=(rows, num_samples))
        drawn += np.arange(rows)[:, None] * num_samples
        counted = np.bincount(drawn.ravel(), minlength=rows * num_samples)
        counts[start : start + rows] = counted.reshape(rows, num_samples)
    return Resamples(counts, confidence)


def estimate(statistic: Statistic, resamples: Resamples) -> Estimate:
    """Value and percentile interval of a metric.

    Resamples in which the metric is not defined (NaN or infinite) are left out.
    """
    return estimates({"": statistic}, resamples)[""]


def estimates(statistics: Mapping[str, Statistic], resamples: Resamples) -> dict[str, Estimate]:
    """`estimate` of many metrics, which share each chunk of weights."""
    count, num_samples = resamples.counts.shape
    ones = np.ones((1, num_samples))
    draws: dict[str, list[Floats]] = {name: [] for name in statistics}
    for start in range(0, count, _CHUNK):
        weights = resamples.counts[start : start + _CHUNK].astype(np.float64)
        for name, statistic in statistics.items():
            draws[name].append(statistic(weights))
    found = {}
    for name, statistic in statistics.items():
        drawn = np.concatenate(draws[name])
        found[name] = Estimate(float(statistic(ones)[0]), *percentiles(drawn, resamples.confidence), drawn)
    return found


def compare(
    student: Estimate, control: Estimate, *, differing: int, confidence: float, higher_is_better: bool = True
) -> Comparison:
    """Paired comparison of two estimates made from the same resamples.

    A verdict needs an interval of the difference that leaves out zero *and* at least `least_differing` samples on
    which the models differ: with fewer, no test on those samples could reach the level, and the percentile interval
    is too short.

    Args:
        student: The candidate.
        control: What it is compared with.
        differing: Number of samples on which they differ.
        confidence: Coverage of the interval.
        higher_is_better: Direction of the metric.
    """
    draws = student.draws - control.draws
    draws = draws[np.isfinite(draws)]
    # Sums taken in another order differ in the last bits; a difference of that size is none.
    draws = np.round(draws, _DIGITS)
    low, high = percentiles(draws, confidence)
    verdict: Verdict = "no evidence"
    if differing >= least_differing(confidence) and (low > 0 or high < 0):
        verdict = "better" if (low > 0) == higher_is_better else "worse"
    delta = round(student.value - control.value, _DIGITS)
    return Comparison(delta, low, high, _p_value(draws), differing, verdict)


def least_differing(confidence: float) -> int:
    """Fewest differing samples with which an exact two-sided sign test can reach the level: 6 at 95 %."""
    return math.ceil(math.log2(2 / (1 - confidence)) - 1e-9)


def largest_share(count: int, total: int, *, confidence: float) -> float:
    """Upper end of the exact two-sided interval of a share (Clopper and Pearson 1934): 0 of 100 may be 3.6 % at 95 %.

    Args:
        count: Samples that have a property.
        total: All samples, at least 1.
        confidence: Coverage, inside (0, 1).
    """
    if count >= total:
        return 1.0
    tail = (1 - confidence) / 2
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(count + 1)]
    low, high = count / total, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        chances = (log + k * math.log(middle) + (total - k) * math.log1p(-middle) for k, log in enumerate(logs))
        low, high = (middle, high) if sum(map(math.exp, chances)) > tail else (low, middle)
    return high


def ratio(numerators: Floats, denominators: Floats | None = None) -> Statistic:
    """Mean over all parts: sum of numerators / sum of denominators.

    Args:
        numerators: Per sample [samples], for example hits over the sample's captions.
        denominators: Parts per sample [samples]; none = one each, which makes it a plain mean.
    """
    parts = np.ones_like(numerators, dtype=np.float64) if denominators is None else denominators
    columns = np.stack([numerators, parts], axis=1).astype(np.float64)

    def value(weights: Floats) -> Floats:
        sums = weights @ columns
        return _divide(sums[:, 0], sums[:, 1])

    return value


def mean_of(*statistics: Statistic) -> Statistic:
    """Plain mean of several metrics."""
    return lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0)


def group_sums(values: Floats, groups: Ints, num_groups: int) -> Callable[[Floats], Floats]:
    """Weighted sum of each group: weights [resamples, samples] to [resamples, num_groups]."""
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)

    def sums(weights: Floats) -> Floats:
        found = np.zeros((len(weights), num_groups))
        if len(present):
            found[:, present] = np.add.reduceat((weights * values)[:, order], starts, axis=1)
        return found

    return sums


def group_means(hits: Floats, groups: Ints, num_groups: int) -> Callable[[Floats], Floats]:
    """Mean of each group: weights [resamples, samples] to [resamples, num_groups], NaN where a group is absent."""
    scored = group_sums(hits, groups, num_groups)
    members = group_sums(np.ones(len(groups)), groups, num_groups)
    return lambda weights: _divide(scored(weights), members(weights))


def mean_over_groups(hits: Floats, groups: Ints, num_groups: int) -> Statistic:
    """Mean of the group means (mean-per-class recall), over the groups that are present."""
    means = group_means(hits, groups, num_groups)

    def value(weights: Floats) -> Floats:
        found = means(weights)
        present = np.isfinite(found)
        return _divide(np.where(present, found, 0).sum(axis=1), present.sum(axis=1).astype(np.float64))

    return value


def worst_group(hits: Floats, groups: Ints, num_groups: int) -> Statistic:
    """Smallest group mean. The bootstrap of a minimum leans downward; read its interval as a caution."""
    means = group_means(hits, groups, num_groups)

    def value(weights: Floats) -> Floats:
        found = means(weights)
        return np.where(np.isfinite(found), found, np.inf).min(axis=1)

    return value


def median(values: Ints | Floats, sample: Ints | None = None) -> Statistic:
    """Lower median: the smallest value that at least half of the parts do not exceed.

    Args:
        values: One per part.
        sample: Index of the sample each part belongs to; none = one part per sample.
    """
    owner = np.arange(len(values)) if sample is None else sample
    order = np.argsort(values, kind="stable")
    ordered, owners = np.asarray(values, dtype=np.float64)[order], owner[order]

    def value(weights: Floats) -> Floats:
        mass = np.cumsum(weights[:, owners], axis=1)
        return ordered[(mass >= mass[:, -1:] / 2).argmax(axis=1)]

    return value


def calibration_error(confidences: Floats, hits: Floats, *, bins: int = 15) -> Statistic:
    """Expected calibration error with equal-width bins (Guo et al. 2017): 0 is perfect, 1 is the worst.

    Args:
        confidences: Probability of the predicted class [samples], 0 to 1.
        hits: Whether the prediction was right [samples], 0 or 1.
        bins: Number of bins; bin b holds confidences in (b / bins, (b + 1) / bins].
    """
    index = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)
    member = np.zeros((len(hits), bins))
    member[np.arange(len(hits)), index] = 1.0
    gaps = member * (hits - confidences)[:, None]
    return lambda weights: _divide(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))


def over_seeds(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean over training seeds with Student's t interval; one seed alone gives an infinite one.

    Args:
        values: One metric, one value per seed.
        confidence: Coverage, inside (0, 1).
    """
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf, math.nan, count)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1))
    half = t_quantile((1 + confidence) / 2, count - 1) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, deviation, count)


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t, for a probability in [0.5, 1) and whole degrees of freedom."""
    low, high = 0.0, 1.0
    while _t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, freedom: int) -> float:
    """Finite series of Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even degrees of freedom), t >= 0."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    inside = (angle + sine * total) * 2 / math.pi if odd else sine * total
    return 0.5 + inside / 2


def percentiles(draws: Floats, confidence: float) -> tuple[float, float]:
    """Ends of the percentile interval; NaN where no resample defines the metric."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def _p_value(draws: Floats) -> float:
    """Twice the smaller tail beyond zero, with one resample added so that it is never 0."""
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(draws) + 1))


def _divide(numerators: Floats, denominators: Floats) -> Floats:
    empty = np.full_like(numerators, np.nan)
    return np.divide(numerators, denominators, out=empty, where=denominators > 0)
