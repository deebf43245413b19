"""Synthetic results that look like real ones, each from a seed: what reports are tested with."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from relume.diagnosis import Cause, Coverage, Diagnosis, Experiment
from relume.recording import InitialWeight, InputReading, Reading, Recording, Site, SiteReading, WeightReading
from relume.report.results import Healed, Page, Report, Trial
from relume.symptoms import Symptom
from relume.verdicts import Arm, Cost, Difference, Run

SAMPLES = 512


def site(order: int, units: int, activation: str = "relu", name: str = "") -> Site:
    """A site after the linear layer `fc{order + 1}`, or one named after the site."""
    layer = f"{name} layer" if name else f"fc{order + 1}"
    return Site(
        name=name or f"act{order + 1}",
        activation=activation,
        units=units,
        axis=-1,
        order=order,
        layers=(layer,),
        weight=f"{layer}.weight",
        bias=f"{layer}.bias",
    )


def site_reading(rng: np.random.Generator, silent: np.ndarray, flat: np.ndarray, gradient: float) -> SiteReading:
    """One reading of a site whose silent units and flat shares are given."""
    units = len(silent)
    noise = rng.normal(size=(3, units)).astype(np.float32)
    return SiteReading(
        samples=SAMPLES,
        flat_share=np.where(silent, 1.0, flat).astype(np.float32),
        silent=silent,
        pre_mean=np.where(silent, -3.0, 0.1 * noise[0]).astype(np.float32),
        pre_std=np.abs(1 + 0.1 * noise[1]).astype(np.float32),
        mean=np.where(silent, 0.0, 0.4 + 0.05 * noise[2]).astype(np.float32),
        std=np.where(silent, 0.0, 0.6).astype(np.float32),
        gradient=np.where(silent, 0.0, gradient * np.exp(0.3 * noise[0])).astype(np.float32),
    )


def recording(
    seed: int = 0,
    *,
    sites: int = 4,
    units: int = 128,
    readings: int = 60,
    steps: int = 300,
    dying: tuple[float, ...] = (0.85, 0.51, 0.38, 0.66),
    activation: str = "relu",
    names: tuple[str, ...] = (),
    model: str = "Net",
) -> tuple[Recording, list[np.ndarray]]:
    """A run in which a share `dying` of each site's units dies, and the step at which each did (steps + 1: never)."""
    rng = np.random.default_rng(seed)
    at = np.unique(np.round(np.geomspace(1, steps, readings)).astype(int) - 1)
    places = tuple(site(i, units, activation, names[i] if i < len(names) else "") for i in range(sites))
    deaths, flats = [], []
    for index in range(sites):
        when = np.full(units, steps + 1)
        share = dying[index % len(dying)] if dying else 0.0
        dead = rng.permutation(units)[: round(share * units)]
        when[dead] = np.clip(np.round(rng.exponential(8.0 * (1 + 3 * index % 7), size=len(dead))), 2, steps * 0.8)
        deaths.append(when)
        flats.append(np.where(rng.random(units) < 0.08, 0.97, 0.9 * rng.beta(5, 4, size=units)))
    frames = []
    for step in at:
        read, weights = {}, {}
        for index, place in enumerate(places):
            near = np.exp(-np.abs(deaths[index] - step) / 10) * (rng.random(units) < 0.4) * (deaths[index] <= steps)
            silent = (deaths[index] <= step) | (rng.random(units) < 0.3 * near)
            flat = np.clip(flats[index] + 0.03 * rng.normal(size=units) + 0.5 * near, 0, 0.995)
            alive = max(0.02, 1 - silent.mean())
            gradient = 0.02 * alive * 0.7 ** min(30, sites - 1 - index) / (1 + step / 80)
            read[place.name] = site_reading(rng, silent, flat, gradient)
            weights[place.weight] = WeightReading(norm=11 + rng.normal() * 0.1, gradient=20 * gradient, update=0.3)
            weights[place.bias] = WeightReading(norm=0.5, gradient=2 * gradient, update=0.02)
        loss = float(2.3 * np.exp(-step / 60) + 0.8 + 0.1 * rng.normal())
        frames.append(
            Reading(
                step=int(step),
                loss=loss,
                learning_rate=0.03,
                sites=read,
                weights=weights,
                input=InputReading(samples=SAMPLES, mean=0.3, std=0.4, rms=0.5, largest=1.0),
                output_rms=1.4,
            )
        )
    losses = 2.3 * np.exp(-np.arange(steps) / 60) + 0.8 + 0.12 * np.abs(rng.normal(size=steps))
    initial = {
        place.weight: InitialWeight(shape=(units, units), fan_in=units, mean=0.0, std=0.05) for place in places
    } | {place.bias: InitialWeight(shape=(units,), fan_in=units, mean=0.0, std=0.03) for place in places}
    made = Recording(
        model=model,
        optimizer="SGD",
        sites=places,
        readings=tuple(frames),
        losses=tuple(map(float, losses)),
        initial=initial,
        steps=steps,
        seconds=12.3,
        watch_share=0.0062,
    )
    return made, deaths


def ill_report(
    seed: int = 0,
    *,
    sites: int = 4,
    units: int = 128,
    readings: int = 60,
    dying: tuple[float, ...] = (0.85, 0.51, 0.38, 0.66),
    names: tuple[str, ...] = (),
    model: str = "Net",
) -> Report:
    """Units die because the learning rate is too high."""
    run, deaths = recording(seed, sites=sites, units=units, readings=readings, dying=dying, names=names, model=model)
    symptoms = tuple(
        Symptom(
            kind="dead",
            site=place.name,
            units=tuple(int(u) for u in np.flatnonzero(when <= run.steps)),
            share=float((when <= run.steps).mean()),
            since=int(when.min()),
            born=False,
            evidence={"dead_share": float((when <= run.steps).mean()), "expected_share": 0.002, "samples": 1437.0},
        )
        for place, when in zip(run.sites, deaths, strict=True)
        if (when <= run.steps).any()
    )
    changes: tuple[tuple[str, Cause | None, float, float], ...] = (
        ("as it was", None, 0.56, 1.41),
        ("learning rate / 10", "learning_rate_too_high", 0.14, 0.62),
        ("He initialisation", "initial_scale", 0.51, 1.33),
        ("biases at zero", "bias", 0.54, 1.39),
        ("inputs scaled to unit variance", "unscaled_inputs", 0.36, 1.02),
    )
    diagnosis = Diagnosis(
        cause="learning_rate_too_high",
        severity="critical",
        since=min(s.since for s in symptoms),
        symptoms=symptoms,
        because=(
            "With a tenth of the learning rate 14 % of the units die instead of 56 %; no other change keeps as many.",
            "One step at the start moved the weights of fc1 by 0.31 of their norm; 0.001 to 0.01 is usual.",
        ),
        remedies=("lower_learning_rate", "batch_norm", "leaky_relu", "recycle"),
        experiments=tuple(
            Experiment(change=change, cause=cause, steps=100, burden=burden, measure="share of units dead", loss=loss)
            for change, cause, burden, loss in changes
        ),
    )
    note = Diagnosis(
        cause="unknown",
        severity="note",
        since=0,
        symptoms=(Symptom(kind="off_centre", site=run.sites[-1].name, share=0.4, evidence={"mean_over_std": 1.8}),),
        because=(f"Outputs of {run.sites[-1].name} lie 1.8 standard deviations from zero on average.",),
        remedies=(),
    )
    every = tuple(place.name for place in run.sites)
    return Report(
        diagnoses=(diagnosis, note),
        coverage=Coverage(sites=every, watched=every),
        recording=run,
        symptoms=(*symptoms, *note.symptoms),
    )


def healthy_report(seed: int = 0, *, sites: int = 4, units: int = 128) -> Report:
    """Nothing is wrong."""
    run, _ = recording(seed, sites=sites, units=units, dying=())
    every = tuple(place.name for place in run.sites)
    return Report(diagnoses=(), coverage=Coverage(sites=every, watched=every), recording=run)


def deep_report(seed: int = 0) -> Report:
    """Fifty layers of 512 units; a few are badly ill, most are well."""
    dying = (0.0,) * 11 + (0.7,) + (0.0,) * 13 + (0.25,)
    return ill_report(seed, sites=50, units=512, readings=100, dying=dying)


def non_finite_report(seed: int = 0) -> Report:
    """A tanh network whose inputs are too large: saturated, then NaN from step 120 on; the run crashed at 150."""
    run, _ = recording(seed, sites=3, units=48, readings=40, activation="tanh", dying=())
    rng = np.random.default_rng(seed)
    frames = []
    for reading in run.readings:
        if reading.step >= 150:
            break
        read = {}
        for index, (name, old) in enumerate(reading.sites.items()):
            flat = np.clip(rng.normal(0.97 - 0.12 * index, 0.04, size=48), 0, 1).astype(np.float32)
            broken = np.full(48, np.nan, dtype=np.float32)
            bad = reading.step >= 120 and index >= 1
            read[name] = SiteReading(
                samples=old.samples,
                flat_share=broken if bad else flat,
                silent=np.zeros(48, dtype=bool),
                pre_mean=broken if bad else old.pre_mean,
                pre_std=broken if bad else old.pre_std,
                mean=broken if bad else old.mean,
                std=broken if bad else old.std,
                gradient=broken if bad else old.gradient,
                non_finite=48 * old.samples if bad else 0,
            )
        loss = float("nan") if reading.step >= 120 else reading.loss
        weights = {
            name: WeightReading(
                norm=w.norm, gradient=float("inf") if reading.step >= 120 else w.gradient, update=w.update
            )
            for name, w in reading.weights.items()
        }
        frames.append(
            Reading(step=reading.step, loss=loss, learning_rate=0.5, sites=read, weights=weights, input=reading.input)
        )
    losses = tuple(
        float("nan") if step >= 120 else loss * 5000 ** (step / 120) for step, loss in enumerate(run.losses[:150])
    )
    made = Recording(
        model="TanhNet",
        optimizer="Adam",
        sites=run.sites,
        readings=tuple(frames),
        losses=losses,
        initial=run.initial,
        blind=("block.gate is compiled, and a compiled call cannot be read.",),
        steps=150,
        finished=False,
        note="ValueError: loss is NaN",
        seconds=4.2,
        watch_share=0.008,
    )
    symptoms = (
        Symptom(kind="non_finite", site="", since=120),
        Symptom(
            kind="saturated", site="act1", units=tuple(range(36)), share=0.75, born=True, evidence={"flat_share": 0.97}
        ),
    )
    diagnosis = Diagnosis(
        cause="unscaled_inputs",
        severity="critical",
        since=0,
        symptoms=symptoms,
        because=("The inputs reach 255, and their root mean square is 130; near 1 is usual.",),
        remedies=("scale_inputs", "batch_norm"),
    )
    every = tuple(place.name for place in run.sites)
    return Report(
        diagnoses=(diagnosis,),
        coverage=Coverage(sites=(*every, "block.gate"), watched=every),
        recording=made,
        symptoms=symptoms,
    )


# arm, verdict, mean difference, spread over seeds, dead share, time, parameters
ARMS = (
    ("batch_norm", "cured", 3.3, 1.7, 0.0, 1.24, 1.02),
    ("lower_learning_rate", "eased", 3.4, 2.2, 0.14, 1.0, 1.0),
    ("smaller_network", "eased", -0.9, 4.5, 0.36, 0.7, 0.28),
    ("he_init", "no_effect", -1.0, 2.8, 0.51, 1.0, 1.0),
    ("xavier_init", "no_effect", -4.1, 4.8, 0.54, 1.01, 1.0),
    ("prelu", "unproven", -5.8, 14.0, 0.0, 1.1, 1.001),
    ("elu", "unproven", -7.4, 9.5, 0.0, 1.06, 1.0),
    ("leaky_relu", "harmed", -11.7, 8.8, 0.0, 1.02, 1.0),
    ("mixed_activations", "harmed", -40.9, 39.0, 0.25, 1.05, 1.0),
)


def trial(seed: int = 0) -> Trial:
    """Eleven arms from five paired seeds: a cure, some that ease, some that harm, one that could not be applied."""
    rng = np.random.default_rng(seed)
    seeds = tuple(range(5))
    base = 0.82 + 0.02 * rng.normal(size=5)

    def arm(name: str, verdict: str | None, mean: float, spread: float, dead: float, time: float, size: float) -> Arm:
        changes = mean / 100 + spread / 100 * rng.normal(size=5) * 0.8
        scores = np.clip(base + changes, 0.02, 0.999) if verdict else base
        delta = scores - base
        half = 2.776 * float(delta.std(ddof=1)) / 5**0.5
        ill = dead > 0.02
        return Arm(
            name=name,
            verdict=verdict,  # pyright: ignore[reportArgumentType] # the table above holds verdicts only
            symptoms=("dead",) if ill else (),
            scores=tuple(map(float, scores)),
            difference=Difference(
                mean=float(delta.mean()), low=float(delta.mean() - half), high=float(delta.mean() + half)
            )
            if verdict
            else None,
            cost=Cost(time=time, parameters=size) if verdict else None,
            dead_share=dead,
            because=f"{dead:.0%} of units dead beside 56 %.",
            changes={"net": f"{name} applied"},
            runs=tuple(
                Run(
                    arm=name,
                    seed=s,
                    score=float(v),
                    burden=dead,
                    kinds=("dead",) if ill else (),
                    dead_share=dead,
                    steps=300,
                )
                for s, v in zip(seeds, scores, strict=True)
            ),
        )

    control = arm("untreated", None, 0.0, 0.0, 0.56, 1.0, 1.0)
    failed = Arm(
        name="layer_norm",
        verdict="unproven",
        symptoms=(),
        scores=(),
        difference=None,
        cost=None,
        failure="RemedyError: the layer before act3 is used twice, and one norm cannot serve both calls.",
    )
    diverged = Arm(
        name="softplus",
        verdict="harmed",
        symptoms=("non_finite",),
        scores=(None,) * 5,
        difference=None,
        cost=Cost(time=1.2, parameters=1.0),
        because="Diverged in 5 of 5 seeds.",
        runs=tuple(
            Run(arm="softplus", seed=s, score=None, burden=1.0, failure="diverged: loss is NaN at step 12")
            for s in seeds
        ),
    )
    return Trial(
        arms=(control, *(arm(*row) for row in ARMS), diverged, failed),
        winner="batch_norm",
        seeds=seeds,
        steps=300,
        engine="2 worker processes",
        score="validation accuracy",
        symptom="dead units",
        seconds=48.0,
        because="BatchNorm leaves no unit dead and scores best; a lower learning rate is nearly as good.",
        code=(
            "# train.py\n"
            "- model = make_model()\n"
            '+ model, optimizer = relume.treat(make_model(), optimizer, "batch_norm")\n'
        ),
    )


def healed(seed: int = 0) -> Healed:
    """The ill run, cured by the winner of the trial."""
    return Healed(
        model=SimpleNamespace(),
        optimizer=SimpleNamespace(),
        remedy="batch_norm",
        trial=trial(seed),
        report_before=ill_report(seed),
        report_after=healthy_report(seed),
        score_before=0.815,
        score_after=0.853,
    )


def ill_page(seed: int = 0) -> Page:
    """What `relume demo` shows."""
    return Page.of(healed(seed))


ATTACK = "</script><img src=x onerror=alert(1)>"


def hostile_page() -> Page:
    """Names from the user's code that would break out of a page, or its width, if they could."""
    names = (ATTACK, "encoder.layers.11.feed_forward.activation_" + "very_" * 20 + "long", "a&b\"c'd", "\x1b[31mred")
    report = ill_report(names=names, model=ATTACK)
    tried = trial()
    return Page(
        report=report,
        trial=replace(
            tried, score=f"score {ATTACK}" + " long" * 20, code=f"x = '{ATTACK}'", because=f"Because {ATTACK}"
        ),
        title=ATTACK,
    )
