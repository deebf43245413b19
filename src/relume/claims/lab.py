"""Where experiments train: one way to build and train small networks, in worker processes, each run done only once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from relume.claims.networks import Lesson, Recipe, attend
from relume.trial.engine import WORTHWHILE

RATES = (0.01, 0.0316, 0.1, 0.316, 1.0)  # half-decades; the grid grows by one more while the best is at its edge
QUICK_RATES = (0.0316, 0.1, 0.316)
MOST_EXTENSIONS = 3
REACHED = 0.5  # cross-entropy; a network that guesses among ten classes has 2.3
SMOOTHED = 10  # steps in the running mean of the loss that must reach it


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How much is spent on each experiment."""

    quick: bool = False
    seeds: int = 10
    tuning_seeds: int = 2
    steps: int = 200
    width: int = 64
    rates: tuple[float, ...] = RATES

    @classmethod
    def of(cls, quick: bool, seeds: int | None = None) -> Setting:
        """The full setting, or the quick one."""
        base = cls(quick=True, seeds=3, tuning_seeds=1, steps=100, width=32, rates=QUICK_RATES) if quick else cls()
        return base if seeds is None else replace(base, seeds=seeds)


@dataclass(slots=True)
class Lab:
    """Runs what experiments ask for, in `workers` processes, and remembers it for the next experiment."""

    setting: Setting
    workers: int | None = None  # None: as many as there are cores
    on_progress: Callable[[Progress], None] | None = None
    _done: dict[Any, Any] = field(default_factory=dict)
    _pool: Any = None

    def map(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """`function(*each)` for each of the arguments, in their order; what was done before is not done again.

        The function and its arguments must be hashable and importable, and its result depend on them alone.
        """
        todo = list(dict.fromkeys(a for a in arguments if (function, a) not in self._done))
        started = time.perf_counter()
        for count, (job, result) in enumerate(self._run(function, todo), start=1):
            self._done[function, job] = result
            if self.on_progress is not None:
                self.on_progress(Progress(done=count, total=len(todo), seconds=time.perf_counter() - started))
        return [self._done[function, a] for a in arguments]

    def _run(self, function: Callable[..., Any], todo: Sequence[tuple[Any, ...]]) -> Iterable[tuple[Any, Any]]:
        from loky import cpu_count

        workers = self.workers or cpu_count()
        # The first runs tell whether workers are worth their start.
        started = time.perf_counter()
        rest = list(todo)
        while rest and self._pool is None:
            yield rest[0], function(*rest.pop(0))
            seconds = (time.perf_counter() - started) / (len(todo) - len(rest))
            if workers > 1 and seconds * len(rest) > WORTHWHILE:
                break
        if not rest:
            return
        from concurrent.futures import as_completed

        if self._pool is None:
            from loky import ProcessPoolExecutor

            self._pool = ProcessPoolExecutor(workers, initializer=_quiet, env={"OMP_NUM_THREADS": "1"})
        futures = {self._pool.submit(function, *job): job for job in rest}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def close(self) -> None:
        """End the workers at once."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=True)

    def recipe(self, **choices: Any) -> Recipe:
        """A network of the setting's size, trained for the setting's steps, and these choices."""
        return Recipe(**{"width": self.setting.width, "steps": self.setting.steps, **choices})

    # Lessons ----------------------------------------------------------------------------------------------------------

    @property
    def seeds(self) -> range:
        """The seeds that are compared."""
        return range(self.setting.seeds)

    def lessons(self, *recipes: Recipe) -> list[list[Lesson]]:
        """Each recipe trained from the same seeds: paired, with equal draws and batches."""
        flat = self.map(attend, [(recipe, seed) for recipe in recipes for seed in self.seeds])
        n = self.setting.seeds
        return [flat[i * n : (i + 1) * n] for i in range(len(recipes))]

    def tuned(self, *recipes: Recipe) -> list[Recipe]:
        """Each recipe with the learning rate of the lowest mean loss over the run, on seeds that are not compared.

        A rate that diverges loses to every other. Where the best is at the edge of the grid, the grid grows.
        """
        own_seeds = [1000 + i for i in range(self.setting.tuning_seeds)]
        grids = {recipe: list(self.setting.rates) for recipe in recipes}
        best = dict.fromkeys(recipes, 0.0)
        growing = list(grids)
        for _ in range(1 + MOST_EXTENSIONS):
            jobs = [(replace(r, rate=rate), seed) for r in growing for rate in grids[r] for seed in own_seeds]
            self.map(attend, jobs)
            edges = []
            for recipe in growing:

                def loss(rate: float, recipe: Recipe = recipe) -> float:
                    return fmean(
                        lesson.mean_loss
                        for lesson in self.map(attend, [(replace(recipe, rate=rate), seed) for seed in own_seeds])
                    )

                grid = grids[recipe]
                best[recipe] = min(grid, key=loss)
                if best[recipe] in (grid[0], grid[-1]) and math.isfinite(loss(best[recipe])):
                    more = float(f"{best[recipe] * 10 ** (-0.5 if best[recipe] == grid[0] else 0.5):.3g}")
                    grids[recipe] = sorted([*grid, more])
                    edges.append(recipe)
            growing = edges
            if not growing:
                break
        return [replace(recipe, rate=best[recipe]) for recipe in recipes]

    def tuned_lessons(self, *recipes: Recipe) -> list[list[Lesson]]:
        """Each recipe at its own best learning rate, trained from the same seeds."""
        return self.lessons(*self.tuned(*recipes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Runs done, of those asked for at once."""

    done: int
    total: int
    seconds: float


def steps_to_learn(lesson: Lesson) -> float:
    """Steps until the running mean of the training loss is at most `REACHED`; all of them where it never is."""
    for end in range(SMOOTHED, len(lesson.losses) + 1):
        if not lesson.diverged and fmean(lesson.losses[end - SMOOTHED : end]) <= REACHED:
            return float(end)
    return float(lesson.steps)


def _quiet() -> None:
    """An interrupt is the parent's to handle."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
