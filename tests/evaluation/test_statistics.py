"""Intervals and verdicts against hand-computed cases, known distributions and independent definitions."""

import math

import numpy as np
import pytest
from scipy import stats

from mobileclip.evaluation.statistics import (
    calibration_error,
    compare,
    draw_resamples,
    estimate,
    estimates,
    group_means,
    largest_share,
    least_differing,
    mean_of,
    mean_over_groups,
    median,
    over_seeds,
    ratio,
    t_quantile,
    worst_group,
)


def weights(*rows):
    return np.array(rows, dtype=float)


def resample_directly(values, *, resamples, seed):
    """The textbook loop, one resample at a time."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(values, size=len(values)).mean() for _ in range(resamples)])


def test_draw_resamples__rows_sum_to_samples_and_repeat_with_the_seed():
    first = draw_resamples(37, resamples=130, confidence=0.9, seed=4)
    again = draw_resamples(37, resamples=130, confidence=0.9, seed=4)
    other = draw_resamples(37, resamples=130, confidence=0.9, seed=5)
    assert (first.counts.sum(axis=1) == 37).all()
    assert (first.counts == again.counts).all()
    assert (first.counts != other.counts).any()


def test_draw_resamples__counts_are_multinomial():
    counts = draw_resamples(50, resamples=20_000, confidence=0.9, seed=0).counts
    observed = np.bincount(counts[:, 7], minlength=6)[:6]
    expected = stats.binom.pmf(np.arange(6), 50, 1 / 50) * 20_000
    assert np.abs(observed - expected).max() < 5 * math.sqrt(expected.max())


def test_ratio__by_hand():
    # Two captions of the first sample (one found), one of the second (found), three of the third (none found).
    statistic = ratio(np.array([1.0, 1.0, 0.0]), np.array([2.0, 1.0, 3.0]))
    np.testing.assert_allclose(statistic(weights([1, 1, 1], [2, 1, 0], [0, 0, 3])), [2 / 6, 3 / 5, 0.0])


def test_group_statistics__by_hand():
    hits, groups = np.array([1.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 2])
    rows = weights([1, 1, 1, 1], [0, 2, 0, 2])
    np.testing.assert_allclose(group_means(hits, groups, 3)(rows), [[0.5, 1, 1], [0, np.nan, 1]])
    np.testing.assert_allclose(mean_over_groups(hits, groups, 3)(rows), [2.5 / 3, 0.5])
    np.testing.assert_allclose(worst_group(hits, groups, 3)(rows), [0.5, 0.0])


def test_mean_of__averages_metrics():
    both = mean_of(ratio(np.array([1.0, 0.0])), ratio(np.array([0.0, 0.0])))
    np.testing.assert_allclose(both(weights([1, 1], [2, 0])), [0.25, 0.5])


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_median__equals_sorting_the_resample(count):
    rng = np.random.default_rng(count)
    values = rng.integers(1, 6, size=count)
    statistic = median(values)
    for row in draw_resamples(count, resamples=50, confidence=0.9, seed=1).counts:
        drawn = np.sort(np.repeat(values, row))
        assert statistic(row[None].astype(float))[0] == drawn[(len(drawn) - 1) // 2]


def test_median__several_parts_per_sample():
    statistic = median(np.array([9, 1, 5]), np.array([0, 0, 1]))
    np.testing.assert_allclose(statistic(weights([1, 1], [1, 0], [0, 1])), [5, 1, 5])


def test_calibration_error__equals_a_loop_over_bins():
    rng = np.random.default_rng(0)
    confidences, hits = rng.random(400), (rng.random(400) < 0.6).astype(float)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidences > low) & (confidences <= low + 1 / 15 + 1e-12)
        if inside.any():
            expected += inside.mean() * abs(hits[inside].mean() - confidences[inside].mean())
    assert calibration_error(confidences, hits)(np.ones((1, 400)))[0] == pytest.approx(expected, abs=1e-12)


def test_calibration_error__weights_are_copies():
    confidences, hits = np.array([0.2, 0.9, 0.9]), np.array([0.0, 1.0, 0.0])
    weighted = calibration_error(confidences, hits)(weights([2, 0, 3]))[0]
    copied = calibration_error(confidences[[0, 0, 2, 2, 2]], hits[[0, 0, 2, 2, 2]])(np.ones((1, 5)))[0]
    assert weighted == pytest.approx(copied, abs=1e-12)


def test_calibration_error__bounds():
    ones = np.ones(10)
    assert calibration_error(ones, ones)(np.ones((1, 10)))[0] == 0
    assert calibration_error(ones, 0 * ones)(np.ones((1, 10)))[0] == 1


def test_estimate__matches_the_textbook_bootstrap_and_the_standard_error():
    values = np.random.default_rng(3).normal(2.0, 1.5, size=300)
    result = estimate(ratio(values), draw_resamples(300, resamples=4000, confidence=0.95, seed=0))
    direct = resample_directly(values, resamples=4000, seed=9)
    error = values.std() / math.sqrt(300)
    assert result.value == pytest.approx(values.mean(), abs=1e-12)
    assert result.draws.std() == pytest.approx(error, rel=0.05)
    assert result.low == pytest.approx(np.quantile(direct, 0.025), abs=0.15 * error)
    assert result.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def metrics_on_samples():
    """Each metric twice: as a function of weights, and as one of the drawn samples themselves."""
    rng = np.random.default_rng(11)
    confidences = rng.random(400)
    hits, groups = (rng.random(400) < confidences).astype(float), rng.integers(0, 5, 400)
    sums, parts = rng.integers(0, 3, 400).astype(float), np.full(400, 2.0)

    def recalls(rows):
        return [hits[rows][groups[rows] == group].mean() for group in np.unique(groups[rows])]

    def error(rows):
        bins = np.minimum(np.ceil(confidences[rows] * 15), 15)
        gaps = [(hits[rows] - confidences[rows])[bins == b].sum() for b in np.unique(bins)]
        return np.abs(gaps).sum() / len(rows)

    return {
        "share": (ratio(hits), lambda rows: hits[rows].mean()),
        "parts": (ratio(sums, parts), lambda rows: sums[rows].sum() / parts[rows].sum()),
        "mean per class": (mean_over_groups(hits, groups, 5), lambda rows: np.mean(recalls(rows))),
        "worst group": (worst_group(hits, groups, 5), lambda rows: min(recalls(rows))),
        "calibration": (calibration_error(confidences, hits), error),
        "median": (median(confidences), lambda rows: np.sort(confidences[rows])[(len(rows) - 1) // 2]),
    }


@pytest.mark.parametrize("name", metrics_on_samples())
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_estimate__intervals_are_those_of_scipy(name, confidence):
    """scipy draws rows itself and calls the plain definition; ours sees weights alone."""
    statistic, plain = metrics_on_samples()[name]
    ours = estimate(statistic, draw_resamples(400, resamples=3000, confidence=confidence, seed=0))
    theirs = stats.bootstrap(
        (np.arange(400),), plain, vectorized=False, method="percentile", n_resamples=3000,
        confidence_level=confidence, random_state=1,
    )  # fmt: skip
    spread = theirs.standard_error
    assert ours.value == pytest.approx(plain(np.arange(400)), abs=1e-12)
    assert ours.draws.std(ddof=1) == pytest.approx(spread, rel=0.06)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.3 * spread)


def test_compare__the_paired_interval_is_that_of_scipy():
    rng = np.random.default_rng(4)
    difficulty, groups = rng.random(300), rng.integers(0, 4, 300)
    student, control = (difficulty + rng.normal(0, 0.2, 300) < 0.6), (difficulty + rng.normal(0, 0.2, 300) < 0.5)

    def recall(hits, rows):
        return np.mean([hits[rows][groups[rows] == group].mean() for group in np.unique(groups[rows])])

    drawn = draw_resamples(300, resamples=3000, confidence=0.95, seed=0)
    ours = compare(
        *(estimate(mean_over_groups(hits.astype(float), groups, 4), drawn) for hits in (student, control)),
        differing=int((student != control).sum()), confidence=0.95,
    )  # fmt: skip
    theirs = stats.bootstrap(
        (np.arange(300),), lambda rows: recall(student, rows) - recall(control, rows), vectorized=False,
        method="percentile", n_resamples=3000, random_state=1,
    )  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.2 * theirs.standard_error)
    assert ours.verdict == ("better" if theirs.confidence_interval.low > 0 else "no evidence")


def test_estimates__of_many_metrics_are_those_of_each():
    drawn = draw_resamples(400, resamples=200, confidence=0.9, seed=3)
    both = {name: statistic for name, (statistic, _) in metrics_on_samples().items()}
    for name, found in estimates(both, drawn).items():
        alone = estimate(both[name], drawn)
        assert (found.value, found.low, found.high) == (alone.value, alone.low, alone.high)
        assert (found.draws == alone.draws).all()


@pytest.mark.parametrize(("count", "total"), [(0, 10), (0, 200), (1, 200), (5, 48), (48, 48)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_largest_share__is_the_exact_interval_of_scipy(count, total, confidence):
    exact = stats.binomtest(count, total).proportion_ci(confidence, method="exact")
    assert largest_share(count, total, confidence=confidence) == pytest.approx(exact.high, abs=1e-9)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_estimate__covers_the_truth_as_often_as_it_says(confidence):
    rng, covered, trials = np.random.default_rng(0), 0, 600
    resamples = draw_resamples(150, resamples=400, confidence=confidence, seed=1)
    for _ in range(trials):
        result = estimate(ratio((rng.random(150) < 0.3).astype(float)), resamples)
        covered += result.low <= 0.3 <= result.high
    assert abs(covered / trials - confidence) < 0.035


def test_compare__pairing_removes_what_both_models_share():
    rng = np.random.default_rng(0)
    difficulty = rng.random(500)
    control, student = (difficulty < 0.5).astype(float), (difficulty < 0.55).astype(float)
    resamples = draw_resamples(500, resamples=1000, confidence=0.95, seed=0)
    a, b = estimate(ratio(student), resamples), estimate(ratio(control), resamples)
    differing = int((student != control).sum())
    paired = compare(a, b, differing=differing, confidence=0.95)
    unpaired = estimate(ratio(control), draw_resamples(500, resamples=1000, confidence=0.95, seed=1))
    assert paired.verdict == "better"
    assert paired.high - paired.low < 0.5 * (np.quantile(a.draws - unpaired.draws, [0.025, 0.975]) @ [-1, 1])


def test_compare__direction_follows_the_metric():
    resamples = draw_resamples(100, resamples=500, confidence=0.95, seed=0)
    high, low = estimate(ratio(np.full(100, 5.0)), resamples), estimate(ratio(np.full(100, 3.0)), resamples)
    options = {"differing": 100, "confidence": 0.95}
    assert compare(high, low, **options).verdict == "better"
    assert compare(low, high, **options).verdict == "worse"
    assert compare(high, low, higher_is_better=False, **options).verdict == "worse"
    assert compare(low, high, higher_is_better=False, **options).verdict == "better"
    assert compare(low, high, **options).p_value == pytest.approx(2 / 501)


def test_compare__same_model_is_no_evidence():
    resamples = draw_resamples(50, resamples=200, confidence=0.95, seed=0)
    same = estimate(ratio(np.random.default_rng(0).random(50)), resamples)
    result = compare(same, same, differing=0, confidence=0.95)
    assert (result.delta, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    assert result.verdict == "no evidence"


def test_compare__few_differing_samples_are_no_evidence_whatever_the_interval_says():
    student, control = np.zeros(200), np.zeros(200)
    student[:5] = 1
    resamples = draw_resamples(200, resamples=2000, confidence=0.95, seed=0)
    result = compare(
        estimate(ratio(student), resamples), estimate(ratio(control), resamples), differing=5, confidence=0.95
    )
    assert result.low > 0
    assert stats.binomtest(5, 5).pvalue > 0.05
    assert result.verdict == "no evidence"


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_least_differing__is_where_the_exact_sign_test_can_reject(confidence):
    fewest = least_differing(confidence)
    assert stats.binomtest(fewest, fewest).pvalue <= 1 - confidence + 1e-9
    assert fewest == 1 or stats.binomtest(fewest - 1, fewest - 1).pvalue > 1 - confidence


@pytest.mark.parametrize(("samples", "rate"), [(200, 0.02), (200, 0.3)])
def test_compare__equal_models_are_told_apart_no_more_often_than_promised(samples, rate):
    rng, wrong, trials = np.random.default_rng(2), 0, 400
    resamples = draw_resamples(samples, resamples=400, confidence=0.95, seed=0)
    for _ in range(trials):
        a, b = ((rng.random(samples) < rate).astype(float) for _ in range(2))
        differing = int((a != b).sum())
        verdict = compare(
            estimate(ratio(a), resamples), estimate(ratio(b), resamples), differing=differing, confidence=0.95
        ).verdict
        wrong += verdict != "no evidence"
    assert wrong / trials < 0.085


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30, 101])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.995])
def test_t_quantile__equals_scipy(freedom, probability):
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)


def test_over_seeds__by_hand():
    result = over_seeds([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764451052 * math.sqrt(2.5) / math.sqrt(5)
    assert result.mean == 3
    assert result.deviation == pytest.approx(math.sqrt(2.5))
    assert (result.low, result.high) == (pytest.approx(3 - half), pytest.approx(3 + half))


def test_over_seeds__one_seed_knows_nothing_of_its_spread():
    result = over_seeds([0.4])
    assert (result.mean, result.low, result.high) == (0.4, -math.inf, math.inf)
