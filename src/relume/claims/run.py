"""Runs claims, and says what was found."""

from __future__ import annotations

import difflib
import os
import platform
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from importlib.metadata import version

from relume.claims.lab import Lab, Progress, Setting
from relume.claims.record import Claim, Result, Results
from relume.claims.table import CLAIMS
from relume.errors import RelumeError


def chosen(ids: Iterable[str] = ()) -> tuple[Claim, ...]:
    """The claims of these ids, all where none is given; RelumeError for an unknown one, with the closest names."""
    ids = tuple(dict.fromkeys(ids)) or tuple(CLAIMS)
    for name in ids:
        if name not in CLAIMS:
            close = difflib.get_close_matches(name, CLAIMS, n=3, cutoff=0.4)
            hint = f"Did you mean {' or '.join(close)}? " if close else ""
            raise RelumeError(f"no claim named {name!r}.\n{hint}`relume claims --list` names all {len(CLAIMS)}.")
    return tuple(CLAIMS[name] for name in ids)


def run(
    ids: Iterable[str] = (),
    *,
    quick: bool = False,
    seeds: int | None = None,
    workers: int | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Results:
    """Test claims here and now; all of them where no id is given. Ctrl-C keeps those that are done.

    Every function compared is trained at a learning rate tuned for it; seeds are paired. Raises RelumeError for an
    unknown id.

    >>> from relume.claims import run
    >>> run(["relu-gradient-one"]).results[0].finding.verdict
    'supported'
    """
    claims = chosen(ids)
    setting = Setting.of(quick, seeds)
    lab = Lab(setting=setting, workers=workers, on_progress=on_progress)
    started, results, finished = time.perf_counter(), [], True
    try:
        for count, claim in enumerate(claims, start=1):
            if on_stage is not None:
                on_stage(f"{count}/{len(claims)} {claim.id}")
            begun = time.perf_counter()
            finding = claim.experiment(lab)
            results.append(
                Result(
                    id=claim.id,
                    statement=claim.statement,
                    source=claim.source,
                    finding=finding,
                    seconds=time.perf_counter() - begun,
                )
            )
    except KeyboardInterrupt:
        finished = False
    finally:
        lab.close()
    return Results(
        results=tuple(results),
        quick=quick,
        seeds=setting.seeds,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - started,
        finished=finished,
        about=_about(),
    )


def _about() -> dict[str, str]:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "relume": version("relume"),
    }
