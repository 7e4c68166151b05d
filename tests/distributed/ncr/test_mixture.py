"""Two Gaussians over losses: against scikit-learn's mixture and a written-out case."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from distributed.ncr.mixture import fit


def two_groups(seed: int, share: float) -> np.ndarray:
    draw = np.random.default_rng(seed)
    low, high = draw.normal(0.2, 0.08, 3000), draw.normal(0.6, 0.15, int(3000 * share))
    values = np.abs(np.concatenate([low, high]))
    return (values - values.min()) / (values.max() - values.min())


@pytest.mark.parametrize(("seed", "share"), [(0, 0.25), (1, 1.0), (2, 1.5)])
def test_scikit_learn_fits_the_same(seed, share):
    values = two_groups(seed, share)
    ours = fit(values).posteriors(values)
    groups = KMeans(2, n_init=3, tol=0, random_state=seed).fit_predict(values[:, None])
    parts = [values[groups == group] for group in (0, 1)]
    start = {
        "weights_init": [len(part) / len(values) for part in parts],
        "means_init": [[part.mean()] for part in parts],
        "precisions_init": [[[1 / (part.var() + 5e-4)]] for part in parts],
    }
    settings = {"max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4, "random_state": seed}
    np.testing.assert_allclose(ours, posteriors_of(GaussianMixture(2, **settings, **start), values), atol=1e-9)
    # NCR's own call, whose start is two-means that end a little early.
    theirs = posteriors_of(GaussianMixture(2, **settings), values)
    assert ((ours > 0.5) != (theirs > 0.5)).mean() < 2e-3
    assert 0.1 < (ours > 0.5).mean() < 0.95


def posteriors_of(peer: GaussianMixture, values: np.ndarray) -> np.ndarray:
    peer.fit(values[:, None])
    return peer.predict_proba(values[:, None])[:, peer.means_.argmin()]


def test_posteriors_are_bayes_rule_over_the_two_densities():
    values = two_groups(3, 0.5)
    mixture = fit(values)

    def density(x, k):
        variance = mixture.variances[k]
        return mixture.shares[k] * np.exp(-((x - mixture.means[k]) ** 2) / 2 / variance) / np.sqrt(2 * np.pi * variance)

    x = values[:20]
    np.testing.assert_allclose(mixture.posteriors(x), density(x, 0) / (density(x, 0) + density(x, 1)), rtol=1e-9)
    assert mixture.means[0] < mixture.means[1]


def test_two_values_are_two_groups():
    values = np.array([0.0] * 5 + [1.0] * 3)
    mixture = fit(values)
    np.testing.assert_allclose(mixture.means, [0, 1])
    np.testing.assert_allclose(mixture.variances, [5e-4, 5e-4])
    np.testing.assert_allclose(mixture.shares, [5 / 8, 3 / 8])
