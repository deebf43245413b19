"""The three results, with what all of them can do: print, turn into JSON, save, show in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relume.actions import Action
from relume.diagnosis import Coverage, Diagnosis, Experiment, diagnose
from relume.recording import Recording, to_json
from relume.symptoms import Symptom, find
from relume.timeline import UnitHistory, timeline
from relume.verdicts import Arm


class _Result:
    """Printing, saving and showing: the same for every result."""

    __slots__ = ()

    def save(self, path: str | Path) -> Path:
        """Write one offline page (`.html`) or the numbers (`.json`), by the suffix; returns the path."""
        from relume.report.save import save

        return save(Page.of(self), Path(path))

    def __str__(self) -> str:
        from relume.report.text import render

        return render(Page.of(self))

    def _repr_html_(self) -> str:
        from relume.report.html import render_inline

        return render_inline(Page.of(self))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report(_Result):
    """What relume found in one run: diagnoses ranked by severity, and how much of the network it could see."""

    diagnoses: tuple[Diagnosis, ...]
    coverage: Coverage
    recording: Recording
    symptoms: tuple[Symptom, ...] = ()
    actions: tuple[Action, ...] = ()  # of the autopilot, in a run that was watched with `heal`

    @classmethod
    def of(cls, recording: Recording, experiments: Mapping[int, tuple[Experiment, ...]] | None = None) -> Report:
        """Judge a recording; `experiments` are replays that decide between causes (see `diagnosis.diagnose`)."""
        symptoms = find(recording)
        read = {name for reading in recording.readings for name in reading.sites}
        names = tuple(site.name for site in recording.sites)
        diagnoses = diagnose(recording, symptoms, experiments)
        return cls(
            diagnoses=diagnoses,
            coverage=Coverage(
                sites=names, watched=tuple(name for name in names if name in read), blind=recording.blind
            ),
            recording=recording,
            symptoms=tuple(symptom for diagnosis in diagnoses for symptom in diagnosis.symptoms),  # doubts settled
        )

    @property
    def healthy(self) -> bool:
        """No diagnosis of severity warning or critical."""
        return all(diagnosis.severity == "note" for diagnosis in self.diagnoses)

    @property
    def timeline(self) -> tuple[UnitHistory, ...]:
        """What became of every unit, and what happened when it died: derived from the recording at each call."""
        return timeline(self.recording)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; keys are the attribute names."""
        return {"healthy": self.healthy, "timeline": to_json(self.timeline), **to_json(self)}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Trial(_Result):
    """Arms trained side by side from paired seeds, each judged against the untreated control."""

    arms: tuple[Arm, ...]  # the untreated control first, then best first
    winner: str | None  # name of the arm to adopt
    seeds: tuple[int, ...]
    steps: int
    engine: str  # "2 worker processes", "in this process"
    score: str  # what the score is, in words
    symptom: str = ""  # what the control suffers from, in words: "dead units"
    seconds: float = 0.0
    because: str = ""  # one sentence: why this winner, or why none
    code: str = ""  # Python that applies the winner
    finished: bool = True  # False: interrupted, and judged on the seeds that were done

    @property
    def control(self) -> Arm:
        """The untreated arm."""
        return self.arms[0]

    def arm(self, name: str) -> Arm:
        """The arm of that name; `KeyError` with the names there are."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(f"no arm named {name!r}; arms: {', '.join(arm.name for arm in self.arms)}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; keys are the attribute names."""
        return to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Healed(_Result):
    """A trained network with the proven remedy in it, or the untreated one where none was proven."""

    model: Any  # the trained torch.nn.Module
    optimizer: Any  # its torch.optim.Optimizer
    remedy: str | None
    trial: Trial | None  # None: the untreated network was healthy
    report_before: Report
    report_after: Report
    score_before: float | None  # of the untreated network; None: it diverged
    score_after: float | None
    because: str = ""  # one sentence: why this remedy, or why none

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; keys are the attribute names, without the network and its optimizer."""
        return {
            "remedy": self.remedy,
            "trial": self.trial and self.trial.to_json(),
            "report_before": self.report_before.to_json(),
            "report_after": self.report_after.to_json(),
            "score_before": to_json(self.score_before),
            "score_after": to_json(self.score_after),
            "because": self.because,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What is shown together: any of the three results; `relume demo` shows all."""

    report: Report | None = None
    trial: Trial | None = None
    healed: Healed | None = None
    title: str = ""
    alone: Any = None  # the one result that the page was made of, if it was one

    @classmethod
    def of(cls, result: Any) -> Page:
        """The page of one result; a page is returned as it is."""
        if isinstance(result, Report):
            return cls(report=result, alone=result)
        if isinstance(result, Trial):
            return cls(trial=result, alone=result)
        if isinstance(result, Healed):
            return cls(
                report=result.report_before,
                trial=result.trial,
                healed=result,
                alone=result,
            )
        return result

    def to_json(self) -> dict[str, Any]:
        """`{"report": ..., "trial": ..., "healed": ...}`, those that there are; a lone result as itself."""
        if self.alone is not None:
            return self.alone.to_json()
        parts = {"report": self.report, "trial": self.trial, "healed": self.healed}
        return {name: part.to_json() for name, part in parts.items() if part is not None}
