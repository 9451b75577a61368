"""Bounds on the largest of several |t| statistics: those of Dunnett with correlation 1/2, of Sidak with 0.

The statistics share an independent estimate of the variance (Dunnett 1955,
doi:10.1080/01621459.1955.10501294).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

MADE = 65_536  # bounds that are kept
# degrees of freedom whose bounds are computed; those of others are interpolated in the reciprocal
FREEDOM = np.array([1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 13, 17, 24, 40, 80, 1e5])


def critical_value(tests: int, freedom: ArrayLike, level: float, correlation: float) -> NDArray[np.float64]:
    """The value that the largest of `tests` |t| exceeds with probability `level`.

    Args:
        tests: how many statistics, 1 or more.
        freedom: degrees of freedom of the variance, 1 or more, any shape.
        level: a probability between 0 and 1.
        correlation: of any two statistics, from 0 to below 1.

    Returns:
        Values of the shape of `freedom`, within 1e-3 of the exact ones.
    """
    freedom = np.asarray(freedom, float)
    last = len(FREEDOM) - 1
    low = int(np.searchsorted(FREEDOM, freedom.min(), side="right")) - 1
    high = min(last, int(np.searchsorted(FREEDOM, freedom.max())))
    part = range(min(max(low, 0), last), high + 1)
    logs = [_log_bound(int(tests), float(FREEDOM[i]), round(level, 8), correlation) for i in part]
    known = 1 / FREEDOM[list(part)]
    return np.asarray(np.exp(np.interp(1 / freedom, known[::-1], logs[::-1])))


@lru_cache(MADE)
def _log_bound(tests: int, freedom: float, level: float, correlation: float) -> float:
    from scipy.optimize import brentq

    def excess(log: float) -> float:
        return _exceeded(float(np.exp(log)), tests, freedom, correlation) - level

    return float(brentq(excess, -6.0, 12.0, xtol=1e-7))


def _exceeded(bound: float, tests: int, freedom: float, correlation: float) -> float:
    """The probability that the largest of the |t| exceeds `bound`: the integral over the standard deviation
    and over the part that the statistics share."""
    from scipy.special import ndtr

    shared, weights = _shared_part() if correlation else (np.zeros(1), np.ones(1))
    scale, density = _deviations(freedom)
    reach, middle = bound * scale[:, None], correlation**0.5 * shared
    own = (1 - correlation) ** 0.5
    inside = ndtr((reach + middle) / own) - ndtr((middle - reach) / own)
    return float((1 - inside**tests) @ weights @ density)


@lru_cache(1)
def _shared_part() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points, weights = np.polynomial.hermite_e.hermegauss(40)
    return points, weights / weights.sum()


@lru_cache(MADE)
def _deviations(freedom: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of an estimated standard deviation around 1, and their weights; they are dense near zero."""
    from scipy.special import gammaincinv

    points, weights = np.polynomial.legendre.leggauss(64)
    part = (points + 1) / 2
    scale = np.sqrt(2 * gammaincinv(freedom / 2, part**3) / freedom)
    return scale, weights / 2 * 3 * part**2
