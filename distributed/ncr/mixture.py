"""A mixture of two Gaussians over one number per pair, fitted by expectation and maximisation.

Legend: n numbers, 2 components, the one of the lower mean first.
"""

from dataclasses import dataclass

import numpy as np

MAX_ITERATIONS, TOLERANCE, REGULARISATION = 10, 1e-2, 5e-4
"""NCR's: iterations, the change of the mean log-likelihood that ends them, and what is added to each variance."""


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians: their shares, means and variances, each `[2]`, means ascending."""

    shares: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def posteriors(self, values_n: np.ndarray) -> np.ndarray:
        """Return the probability that each value is of the component with the lower mean: `[n]` float64."""
        return np.exp(self._log_joint(values_n)[:, 0] - self.log_likelihoods(values_n))

    def log_likelihoods(self, values_n: np.ndarray) -> np.ndarray:
        """Return the log of the mixture's density at each value: `[n]`."""
        return np.logaddexp(*self._log_joint(values_n).T)

    def _log_joint(self, values_n: np.ndarray) -> np.ndarray:
        squares_n2 = (values_n[:, None] - self.means) ** 2 / self.variances
        return np.log(self.shares) - 0.5 * (np.log(2 * np.pi * self.variances) + squares_n2)


def fit(values_n: np.ndarray) -> Mixture:
    """Fit the mixture to at least two different values.

    It begins from the split into two groups with the least squares within, which is found exactly, where the usual
    start, two-means from random centres, would need a seed.
    """
    values_n = np.asarray(values_n, np.float64)
    member_n = (values_n > _best_split(values_n)).astype(np.float64)
    mixture, before = _maximise(values_n, np.stack([1 - member_n, member_n], axis=1)), -np.inf
    for _ in range(MAX_ITERATIONS):
        likelihood = float(mixture.log_likelihoods(values_n).mean())
        lower_n = mixture.posteriors(values_n)
        mixture = _maximise(values_n, np.stack([lower_n, 1 - lower_n], axis=1))
        if abs(likelihood - before) < TOLERANCE:
            break
        before = likelihood
    order = np.argsort(mixture.means, kind="stable")
    return Mixture(mixture.shares[order], mixture.means[order], mixture.variances[order])


def _maximise(values_n: np.ndarray, members_n2: np.ndarray) -> Mixture:
    counts = members_n2.sum(axis=0) + 10 * np.finfo(np.float64).eps  # a component that lost all its members
    means = values_n @ members_n2 / counts
    variances = (members_n2 * (values_n[:, None] - means) ** 2).sum(axis=0) / counts + REGULARISATION
    return Mixture(counts / counts.sum(), means, variances)


def _best_split(values_n: np.ndarray) -> float:
    """Return the largest value of the lower group of the two whose squares within add up to least."""
    ordered = np.sort(values_n)
    places = np.flatnonzero(ordered[1:] > ordered[:-1]) + 1  # sizes that the lower group can have
    sums = np.cumsum(ordered)[places - 1]
    # Squares within are the squares in all less these.
    between = sums**2 / places + (ordered.sum() - sums) ** 2 / (len(ordered) - places)
    return float(ordered[places[int(np.argmax(between))] - 1])
