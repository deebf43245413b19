"""When a watch reads the next step, so that reading takes its share of the run's time and no more. No torch here."""

from __future__ import annotations

import math
import time
from collections import deque
from statistics import median

FIRST_RUN = 2000  # steps whose share may be spent at once: what is ill from the start shows early
GROWTH = 4  # from one early reading to the next, in steps done, where the budget allows no more
AIM = 0.6  # of the budget; the rest is left for what was not measured: caches are cold after a reading
FEWEST = 0.1  # of the budget, for readings, whatever looks cost
COPYING = 0.1  # of the budget, for copies of the network that replays may begin from; they count as looks
FIRST_READINGS = 2  # without regard to cost: a branch that starts at zero gets its first gradient a step later
COLD = 2.0  # times what later readings cost, the first one does: caches are empty
LONGEST_WAIT = 2000  # steps between readings, whatever one costs: a run of any length is read now and then
RESOLUTION = 500  # a reading dates to a share of 1 / 500 of the run; more would fill memory and journals

# The processor's time, since a reading that the system interrupts is no dearer; where it ticks coarsely, the clock's.
clock = time.process_time if time.get_clock_info("process_time").resolution <= 1e-6 else time.perf_counter


class Pace:
    """Spaces readings by what they cost: `ordinary` and `read` tell what was measured, `wait` how long to go on.

    All costs in seconds. The cost of a reading is what its step takes longer than ordinary ones do, which is up to
    three times what the reading itself can measure of its own.
    """

    def __init__(self, budget: float) -> None:
        self.spent = 0.0  # on looks and readings
        self.counting = 0.0  # on each ordinary step, in which no more is done than to count it; 0 where not yet known
        self._looks = 0.0
        self._readings = 0
        self._budget = budget
        self._cost = 0.0
        self._usual: deque[float] = deque(maxlen=16)

    @property
    def usual(self) -> float:
        """What a step takes that is not read; 0 where it is not known yet."""
        return median(self._usual) if self._usual else 0.0

    def ordinary(self, seconds: float) -> None:
        """A step was not read, and took so long from its forward pass on."""
        self._usual.append(seconds)

    def counted(self, seconds: float) -> None:
        """A step was counted, which took so long."""
        self.counting = min(seconds, self.counting) if self.counting else seconds

    def look(self, seconds: float) -> None:
        """Something else was done between steps, and took so long."""
        self._looks += seconds
        self.spent += seconds

    def read(self, seconds: float, own: float) -> None:
        """A step was read and took so long from its forward pass on, and then `own`."""
        extra = own + max(0.0, seconds - self.usual if self.usual else 0.0)
        self.spent += extra
        self._readings += 1
        self._cost = 0.7 * self._cost + 0.3 * min(extra, 4 * self._cost) if self._cost else extra / COLD

    def copies(self, done: int, cost: float) -> int:
        """Steps, with so many done, from one copy of the network to the next, where each costs so much.

        At most as many as are done, so that a short run has some.
        """
        fewest = math.ceil(cost / (COPYING * self._budget * self.usual)) if self.usual else 1
        return min(fewest, done, LONGEST_WAIT)

    def wait(self, done: int) -> int:
        """Steps from the latest reading, with so many done, to the next."""
        if not self.usual:
            return GROWTH
        a_step = self._budget * self.usual
        earned = max(AIM * a_step - self.counting - self._looks / done, FEWEST * a_step)
        fewest = max(1, done // RESOLUTION, math.ceil(self._cost / earned))
        owed = math.ceil((self.spent - self._looks + self._cost) / earned)
        early = owed <= FIRST_RUN or self._readings < FIRST_READINGS
        wait = min(fewest, (GROWTH - 1) * done) if early else max(fewest, owed - done)
        return min(wait, LONGEST_WAIT)
