"""Confidence sequences: bounds on a mean that hold at all times at once, so that one may check after every observation.

The empirical-Bernstein sequence of Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting"
(JRSS B, 2024), theorem 2: the predictable plug-in form, which adapts to the variance and is computed in one pass. The
theory: Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences" (2021).
"""

import math

LARGEST_BET = 0.5  # below 1; the paper recommends 1/2 or 3/4
PRIOR_MEAN = 0.5  # of observations scaled to [0, 1], before the first
PRIOR_VARIANCE = 0.25  # the largest that they can have


class EmpiricalBernstein:
    """A lower and an upper bound on the mean of observations in a known range.

    Each bound holds with probability 1 - alpha at all times together, whatever the distribution, as long as the mean of
    an observation given the earlier ones stays the same; if it varies, the bounds are on its weighted average.

    Example:
        >>> mean = EmpiricalBernstein(alpha=0.05, low=-1.0, high=1.0)
        >>> for number in range(1000):
        ...     mean.add(0.3 if number % 2 else 0.1)
        >>> round(mean.lower, 2), round(mean.upper, 2)
        (0.19, 0.21)
    """

    def __init__(self, alpha: float, *, low: float = 0.0, high: float = 1.0) -> None:
        """Start without observations.

        Args:
            alpha: Probability with which a bound may fail at any time, in (0, 1).
            low: Smallest possible observation.
            high: Largest possible observation.
        """
        self.count = 0
        self._low = low
        self._high = high
        self._log = math.log(1.0 / alpha)
        self._bets = 0.0
        self._weighted = 0.0
        self._spent = self._log
        self._mean = PRIOR_MEAN
        self._variance = PRIOR_VARIANCE

    def add(self, value: float) -> None:
        """Take one observation.

        Args:
            value: The observation; outside the range it counts as the nearest bound.
        """
        x = min(max((value - self._low) / (self._high - self._low), 0.0), 1.0)
        self.count += 1
        n = self.count
        bet = min(math.sqrt(2.0 * self._log / (self._variance * n * math.log(n + 1.0))), LARGEST_BET)
        self._bets += bet
        self._weighted += bet * x
        self._spent += (x - self._mean) ** 2 * (-math.log1p(-bet) - bet)
        # The plug-in estimates include the priors as one more observation.
        self._mean += (x - self._mean) / (n + 1)
        self._variance += ((x - self._mean) ** 2 - self._variance) / (n + 1)

    @property
    def mean(self) -> float:
        """The weighted mean that the bounds lie around; the middle of the range before the first observation."""
        return self._scaled(self._weighted / self._bets if self.count else PRIOR_MEAN)

    @property
    def lower(self) -> float:
        """The lower bound."""
        return self._scaled(max((self._weighted - self._spent) / self._bets, 0.0)) if self.count else self._low

    @property
    def upper(self) -> float:
        """The upper bound."""
        return self._scaled(min((self._weighted + self._spent) / self._bets, 1.0)) if self.count else self._high

    def _scaled(self, x: float) -> float:
        return self._low + (self._high - self._low) * x
