"""The sections of a page, from the verdict down to how it was seen: the text, and places for the charts."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version

from relume.diagnosis import Diagnosis
from relume.report import numerals, words
from relume.report.cards import cards
from relume.report.charts import arranged, differences, gradients, losses, replays, states_present
from relume.report.headline import coverage, headline, healed_line, ill_share, subtitle
from relume.report.history import LETTERS, SiteHistory, function_name, histories
from relume.report.markup import Html, figure, fold, t, table
from relume.report.results import Healed, Page, Report, Trial
from relume.report.text import symptom_lines
from relume.verdicts import Arm

HEAD = words.HEADINGS


def body(page: Page, static: bool = False) -> str:
    """All sections that the page has something for."""
    report, trial, healed = page.report, page.trial, page.healed
    parts = [_header(page)]
    if report is not None:
        parts.append(_section("actions", _list(words.actions(report))))
        if report.recording.sites:
            parts.append(_units(report, static))
        if report.diagnoses:
            parts.append(_why(report, static))
        if not static:
            parts.append(_course(report))
    if trial is not None:
        parts.append(_helps(trial, static))
    elif report is not None:
        parts.append(_to_try(report))
    if trial is not None and trial.code:
        parts.append(_do_this(trial))
    if healed is not None:
        parts.append(_healed(healed))
    if report is not None or trial is not None:
        parts.append(_how(page))
    return f"<main>{''.join(parts)}</main>"


def _section(key: str, content: str) -> str:
    return f'<section aria-labelledby="{key}"><h2 id="{key}">{t(HEAD[key])}</h2>{content}</section>' if content else ""


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{t(sentence)}</li>' for sentence in sentences)}</ul>" if sentences else ""


# The verdict ----------------------------------------------------------------------------------------------------------


def _header(page: Page) -> str:
    more = subtitle(page)
    return (
        f'<header><p class="kicker">{t(" · ".join(_kicker(page)))}</p><h1>{t(headline(page))}</h1>'
        + (f'<p class="sub">{t(more)}</p>' if more else "")
        + '<ul class="cards">'
        + "".join(
            f'<li><p class="big">{t(card.number)}{f" <small>{t(card.unit)}</small>" if card.unit else ""}</p>'
            f"<p>{t(card.label)}</p></li>"
            for card in cards(page)
        )
        + "</ul></header>"
    )


def _kicker(page: Page) -> Iterator[str]:
    yield page.title if page.title.startswith("relume") else "relume"
    if page.title and not page.title.startswith("relume"):
        yield page.title
    report = page.report
    if report is None:
        if page.trial is not None:
            yield words.trial_terms(page.trial)
        return
    if report.recording.model:
        yield report.recording.model
    yield words.watched(len(report.coverage.watched), len(report.coverage.sites))
    if report.recording.steps:
        yield numerals.count(report.recording.steps, "step")
    if report.recording.seconds:
        yield numerals.seconds(report.recording.seconds)


# What happened to the units -------------------------------------------------------------------------------------------


def _units(report: Report, static: bool) -> str:
    every = histories(report)
    sites = _site_table(every)
    if static:
        rows = sites if len(every) <= 8 else fold(words.as_table(len(every)), sites)
        return _section("units", _moments(report) + rows)
    shown, folded = arranged(every)
    content = [f"<p>{t(words.MAP_INTRO)}</p>", _legend(report, every), _maps(shown, 0)]
    if folded:
        content.append(
            fold(words.more_sites(len(folded), sum(h.ill for h in folded)), _maps(folded, len(shown)), "many")
        )
    content += [_moments(report), fold(words.as_table(len(every)), sites)]
    return _section("units", "".join(content))


def _moments(report: Report) -> str:
    lines = "".join(f"<li>{t(line)}</li>" for line in words.timeline(report))
    return f'<div class="moments"><h3>{t(words.TIMELINE)}</h3><ul>{lines}</ul></div>' if lines else ""


def _maps(shown: Sequence[SiteHistory], first: int) -> str:
    figures = []
    for index, history in enumerate(shown, start=first):
        site = history.site
        caption = (
            f'<span class="name"><b>{t(history.label)}</b> · {t(function_name(site.activation))}</span> '
            f'<span class="amount">{t(words.map_amount(history))}</span>'
        )
        figures.append(figure("map", words.map_text(history), caption, index))
    return f'<div class="maps">{"".join(figures)}</div>'


def _legend(report: Report, every: Sequence[SiteHistory]) -> str:
    items = "".join(
        '<li><svg class="swatch" width="14" height="14" aria-hidden="true">'
        f'<rect class="s{letter}" width="14" height="14"/>'
        f'<rect fill="url(#mark-{letter})" width="14" height="14"/></svg>'
        f"{t(words.STATES_LONG[letter])}</li>"
        for letter in states_present(report, every)
    )
    return f'<ul class="legend">{items}</ul>'


def _site_table(every: Sequence[SiteHistory]) -> str:
    rows = [
        (
            h.site.name,
            h.site.layer if h.site.layer != h.site.name else "",
            function_name(h.site.activation),
            Html(_strip(h)),
            f"{h.dead} / {h.site.units}",
            str(h.count(LETTERS.index("p"))),
            "" if h.gradient is None else numerals.number(h.gradient),
            words.first_death(h),
        )
        for h in every
    ]
    return table(words.SITE_COLUMNS, rows, words.SITE_TABLE, numbers=(4, 5, 6, 7))


def _strip(history: SiteHistory) -> str:
    """The units at the end as a bar in proportion; it needs no script."""
    total = history.site.units or 1
    parts = "".join(
        f'<i class="b{letter}" style="width:{100 * n / total:.1f}%"></i>'
        for letter in "asp-ex"
        if (n := history.count(LETTERS.index(letter)))
    )
    return f'<span class="strip" aria-hidden="true">{parts}</span>'


# Why ------------------------------------------------------------------------------------------------------------------


def _why(report: Report, static: bool) -> str:
    content = "".join(_diagnosis(report, diagnosis) for diagnosis in report.diagnoses)
    data = replays(report)
    if data is not None:
        rows = [(row["change"], row["share"]) for row in data["rows"]]
        intro = words.replay_intro(data["steps"])
        numbers = table((words.REPLAY_CHANGE, data["measure"]), rows, intro, numbers=(1,))
        chart = f"<p>{t(intro)}</p>" + figure("replays", words.replay_text(rows, data["measure"]), axis=data["measure"])
        content += numbers if static else chart + fold(words.SAME_TABLE, numbers)
    return _section("why", content)


def _diagnosis(report: Report, diagnosis: Diagnosis) -> str:
    because = "".join(f"<li>{t(sentence)}</li>" for sentence in diagnosis.because)
    lines = "".join(f"<li>{t(line)}</li>" for line in symptom_lines(report, diagnosis.symptoms))
    numbers = [
        (words.kind(s), s.site or words.WHOLE_RUN, words.evidence_name(name), numerals.number(value, 3))
        for s in diagnosis.symptoms
        for name, value in s.evidence.items()
    ]
    evidence = table(words.EVIDENCE_COLUMNS, numbers, words.EVIDENCE, numbers=(3,)) if numbers else ""
    mark = t(words.SEVERITY_MARKS[diagnosis.severity])
    return (
        f'<article class="diagnosis {diagnosis.severity}"><h3>'
        f'<span class="badge"><span aria-hidden="true">{mark}</span> '
        f"{t(words.SEVERITIES[diagnosis.severity])}</span> {t(words.sentence_case(words.title(diagnosis)))} "
        f'<span class="since">{t(words.since(diagnosis.since))}</span></h3><ul>{because}{lines}</ul>'
        + (fold(words.EVIDENCE, evidence) if evidence else "")
        + "</article>"
    )


# Loss and gradients over the run --------------------------------------------------------------------------------------


def _course(report: Report) -> str:
    content = ""
    loss = losses(report)
    if loss is not None:
        points = loss["points"]
        picks = [points[round(i * (len(points) - 1) / 9)] for i in range(10)] if len(points) > 10 else points
        rows = [(f"{p[0]:.0f}", numerals.number(p[1], 3)) for p in picks]
        label = words.loss_text(points[0][1], points[-1][1], loss["broken"])
        content += f'<div class="chart"><h3>{t(words.LOSS)}</h3>' + figure("loss", label)
        content += (
            fold(words.SAME_TABLE, table((words.CHART["step"], words.CHART["loss"]), rows, words.LOSS, (1,))) + "</div>"
        )
    data = gradients(report.recording)
    if data is not None:
        layers = list(dict.fromkeys(p["layer"] for p in data["points"]))
        norms = {(p["layer"], p["when"]): p["norm"] for p in data["points"]}
        rows = [
            (
                layer,
                *(
                    numerals.number(float(v)) if (v := norms.get((layer, w))) is not None else ""
                    for w in range(len(data["steps"]))
                ),
            )
            for layer in layers
        ]
        head = (words.SITE_COLUMNS[1], *(f"{words.CHART['at']} {step:,}" for step in data["steps"]))
        content += f'<div class="chart"><h3>{t(words.GRADIENTS)}</h3>' + figure("gradients", words.gradient_text(data))
        content += fold(words.SAME_TABLE, table(head, rows, words.GRADIENTS, tuple(range(1, len(head))))) + "</div>"
    return _section("course", f'<div class="pair">{content}</div>' if content else "")


# What helps -----------------------------------------------------------------------------------------------------------


def _helps(trial: Trial, static: bool) -> str:
    points = numerals.in_points(trial.score, [s for arm in trial.arms for s in arm.scores])
    rows = [_arm(trial, arm, 100.0 if points else 1.0) for arm in trial.arms]
    head = (*words.ARM_COLUMNS[:3], ill_share(trial, trial.control)[0], *words.ARM_COLUMNS[3:])
    numbers = table(head, rows, words.sentence_case(words.difference_means(trial, points)), numbers=(2, 3, 4, 5))
    content = f"<p>{t(words.trial_intro(trial, chart=not static))}</p>"
    data = differences(trial)
    if static or data is None:
        content += numbers
    else:
        content += (
            figure("trial", words.trial_text(data["rows"]), axis=data["axis"])
            + _out(trial)
            + fold(words.SAME_TABLE, numbers)
        )
    return _section("helps", content)


def _out(trial: Trial) -> str:
    """Arms that are not in the chart, and why."""
    out = [arm for arm in trial.arms[1:] if arm.difference is None]
    lines = "".join(
        f"<li><b>{t(words.sentence_case(words.remedy(arm.name)))}</b>: {t(words.left_out(arm))}</li>" for arm in out
    )
    return f'<p>{t(words.NOT_IN_CHART)}</p><ul class="out">{lines}</ul>' if out else ""


def _arm(trial: Trial, arm: Arm, scale: float) -> Sequence[str]:
    if arm.verdict is None:
        verdict = words.CONTROL
    elif arm.failure:
        verdict = words.NOT_TRIED
    else:
        verdict = f"{words.VERDICT_MARKS[arm.verdict]} {words.VERDICTS[arm.verdict]}".replace(" ", "\u00a0")
    share = "" if all(score is None for score in arm.scores) else numerals.percent(ill_share(trial, arm)[1])
    cost = (numerals.ratio(arm.cost.time), numerals.ratio(arm.cost.parameters)) if arm.cost else ("", "")
    return (
        words.remedy(arm.name),
        verdict,
        numerals.difference(arm.difference, scale),
        share,
        *cost,
        arm.because or arm.failure,
    )


def _to_try(report: Report) -> str:
    names = list(dict.fromkeys(name for d in report.diagnoses if d.severity != "note" for name in d.remedies))
    if not names:
        return ""
    items = "".join(f"<li>{t(words.remedy(name))} <code>{t(name)}</code></li>" for name in names)
    return _section("try", f"<p>{t(words.TO_TRY)}</p><ol>{items}</ol>")


def _do_this(trial: Trial) -> str:
    lines = []
    for line in trial.code.strip("\n").split("\n"):
        # Not through `t`: code must stay as it is, hyphens and all.
        safe = Html(escape(line))
        kind = {"+": "ins", "-": "del"}.get(line[:1]) if line[1:2] == " " else None
        lines.append(f"<{kind}>{safe}</{kind}>" if kind else safe)
    return _section("do", f'<div class="code"><pre tabindex="0"><code>{chr(10).join(lines)}</code></pre></div>')


def _healed(healed: Healed) -> str:
    before, after = healed.report_before, healed.report_after
    rows = [
        (
            words.DEAD_UNITS,
            *(
                f"{sum(h.dead for h in histories(r)):,} of {sum(s.units for s in r.recording.sites):,}"
                for r in (before, after)
            ),
        ),
        (words.FINDINGS, *(words.findings(r) for r in (before, after))),
    ]
    return _section("healed", f"<p>{t(healed_line(healed))}</p>" + table(words.HEALED_COLUMNS, rows, words.HEALED))


# How this was seen ----------------------------------------------------------------------------------------------------


def _how(page: Page) -> str:
    facts: list[tuple[str, str]] = []
    report = page.report
    if report is not None:
        recording = report.recording
        facts.append((words.FACTS["watched"], coverage(report)))
        samples = [h.silent_samples for h in histories(report) if h.silent_samples]
        means = words.dead_means(min(samples, default=0), recording.distinct_samples)
        facts.append((words.FACTS["dead"], words.sentence_case(means) + "."))
        if recording.watch_share is not None:
            facts.append((words.FACTS["cost"], words.watch_cost(recording.watch_share)))
        facts.append((words.FACTS["run"], words.run_facts(recording)))
    if page.trial is not None:
        facts.append((words.FACTS["trial"], words.sentence_case(words.trial_terms(page.trial)) + "."))
    facts.append((words.FACTS["versions"], ", ".join(_versions())))
    rows = "".join(f"<div><dt>{t(name)}</dt><dd>{t(value)}</dd></div>" for name, value in facts)
    return _section("how", f"<dl>{rows}</dl>")


def _versions() -> Iterator[str]:
    for name in ("relume", "torch"):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    yield f"Python {platform.python_version()}"
