"""A page as text: for `print(result)` without colour, for a terminal with it; the same renderables for both."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from textwrap import indent

from rich.box import Box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from relume.diagnosis import Diagnosis
from relume.report import numerals, words
from relume.report.headline import coverage, headline, healed_line, ill_share, subtitle
from relume.report.history import LETTERS, SiteHistory, function_name, histories, labels
from relume.report.results import Page, Report, Trial
from relume.symptoms import Symptom
from relume.verdicts import Arm

WIDTH = 100  # of plain text
NARROW = 80  # of the site table: columns that matter least are left out below this
TRIAL_NARROW = 92  # of the trial table, likewise
SITES = 16  # rows of the site table; the worst are shown, and the rest is counted
STRIP = 20  # signs in the picture of a site's units

# Only the sixteen basic colours: the reader's terminal theme decides how they look on its background.
SEVERITY_STYLES = {"critical": "bold red", "warning": "bold yellow", "note": "cyan"}
VERDICT_STYLES = {"cured": "bold green", "eased": "blue", "no_effect": "", "harmed": "red", "unproven": "dim"}
STATE_STYLES = {"a": "green", "s": "green dim", "p": "yellow", "x": "bold", "e": "red", "-": "dim"}

# A rule under the head and nothing else, in ASCII: `print` must not fail where the output's encoding is a small one.
RULED = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def render(page: Page, width: int | None = None) -> str:
    """The page as plain text, at most `width` columns wide."""
    # Given as parameters, so that FORCE_COLOR, NO_COLOR or TERM of the caller's shell change nothing here.
    console = Console(
        file=io.StringIO(),
        width=width or WIDTH,
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
        _environ={},
    )
    with console.capture() as captured:
        _print(page, console, whole_headline=width is None)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def print_rich(page: Page, console: Console | None = None) -> None:
    """Print the page on a terminal, with colours where it has them; NO_COLOR is respected by rich."""
    _print(page, console or Console())


def _print(page: Page, console: Console, whole_headline: bool = False) -> None:
    """Print part after part; what may not be wrapped says so itself: code must be copied whole."""
    for part in _parts(page, console.width, whole_headline):
        console.print(part, highlight=False, soft_wrap=isinstance(part, Text) and bool(part.no_wrap))


def _parts(page: Page, width: int, whole_headline: bool) -> Iterator[RenderableType]:
    yield Text(_clean(headline(page)), style="bold", no_wrap=whole_headline)
    more = subtitle(page)
    if more:
        yield Text(_clean(more))
    report = page.report
    if report is not None:
        if report.actions:
            yield Text()
            yield Text(words.HEADINGS["actions"], style="bold")
            yield from map(_item, words.actions(report))
        for diagnosis in report.diagnoses:
            yield Text()
            yield from _diagnosis(report, diagnosis)
        if moments := words.timeline(report):
            yield Text()
            yield Text(words.TIMELINE, style="bold")
            yield from map(_item, moments)
        yield Text()
        yield Text(_clean(f"Seen: {coverage(report)}"))
        if report.recording.sites:
            yield Text()
            yield from _sites(report, width)
    if page.trial is not None:
        yield Text()
        yield from _trial(page.trial, width)
    if page.healed is not None:
        yield Text()
        yield Text(_clean(healed_line(page.healed)), style="bold")


def _clean(text: str) -> str:
    """Names come from the user's code: what would steer a terminal is shown as a question mark."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text)


# Diagnoses ------------------------------------------------------------------------------------------------------------


def _diagnosis(report: Report, diagnosis: Diagnosis) -> Iterator[RenderableType]:
    style = SEVERITY_STYLES[diagnosis.severity]
    yield Text.assemble(
        (f"{words.SEVERITY_MARKS[diagnosis.severity]} {diagnosis.severity}", style),
        "  ",
        (words.title(diagnosis), "bold"),
        (f", {words.since(diagnosis.since)}", "dim"),
    )
    for sentence in diagnosis.because:
        yield _item(sentence)
    for line in symptom_lines(report, diagnosis.symptoms):
        yield _item(line)
    if diagnosis.remedies:
        yield _item(f"Try: {', '.join(words.remedy(name) for name in diagnosis.remedies)}")


def _item(sentence: str) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=2, justify="right")
    table.add_column(overflow="fold")
    table.add_row(Text("-", style="dim"), Text(_clean(sentence)))
    return table


def symptom_lines(report: Report, symptoms: Sequence[Symptom]) -> list[str]:
    """The symptoms of a diagnosis, one line a kind, the worst site first."""
    sizes = {site.name: site.units for site in report.recording.sites}
    names = labels(report.recording)
    groups: defaultdict[tuple[str, bool], list[Symptom]] = defaultdict(list)
    for symptom in symptoms:
        groups[symptom.kind, symptom.born].append(symptom)
    lines = []
    for group in groups.values():
        placed = sorted((s for s in group if s.site), key=lambda s: -s.share)
        places = [words.place(s, names.get(s.site, s.site), sizes.get(s.site, 0)) for s in placed]
        rest = "" if len(places) <= 6 else f" and {len(places) - 6} more sites"
        head = words.symptom_head(group)
        lines.append(head + (f": {', '.join(places[:6])}{rest}" if places else ""))
        if proof := words.proven(report.recording, group):
            lines.append(proof)
    return lines


# Sites ----------------------------------------------------------------------------------------------------------------


def _sites(report: Report, width: int) -> Iterator[RenderableType]:
    every = histories(report)
    shown = every
    if len(every) > SITES:
        worst = sorted(every, key=lambda h: -h.ill / max(1, h.site.units))[:SITES]
        shown = tuple(h for h in every if h in worst)
    wide = width >= NARROW
    strip = STRIP if wide else STRIP // 2
    table = Table(box=RULED, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("site", overflow="fold", max_width=width // 4)
    if wide:
        table.add_column("layer", overflow="fold", max_width=width // 5)
    table.add_column("function", overflow="fold")
    table.add_column("units at the end" if wide else "units", no_wrap=True, min_width=strip)
    table.add_column("dead", justify="right", no_wrap=True)
    table.add_column("saturated", justify="right", no_wrap=True)
    if wide:
        table.add_column("gradient", justify="right", no_wrap=True)
    for history in shown:
        site = history.site
        row = [
            Text(_clean(site.name)),
            *([Text(_clean(site.layer if site.layer != site.name else "-"))] if wide else []),
            Text(function_name(site.activation)),
            _strip(history, strip),
            Text(f"{history.dead}/{site.units}", style="bold" if history.dead else "dim"),
            Text(f"{history.count(LETTERS.index('p'))}/{site.units}"),
            *([Text("-" if history.gradient is None else numerals.number(history.gradient))] if wide else []),
        ]
        table.add_row(*row)
    yield table
    if len(shown) < len(every):
        hidden = [h for h in every if h not in shown]
        ill = sum(h.ill for h in hidden)
        yield Text(
            f"{len(hidden)} more sites, {'all alive' if not ill else numerals.count(ill, 'ill unit')}.", style="dim"
        )
    yield Text()
    yield _legend(every)


def _strip(history: SiteHistory, length: int) -> Text:
    """The units of a site as a row of signs, in proportion; what is there at all gets one sign at least."""
    counts = {letter: history.count(state) for state, letter in enumerate(LETTERS)}
    counts = {letter: counts[letter] for letter in "asp-ex" if counts[letter]}
    total = sum(counts.values()) or 1
    signs = {letter: max(1, round(length * n / total)) for letter, n in counts.items()}
    while sum(signs.values()) > length:
        signs[max(signs, key=lambda letter: signs[letter])] -= 1
    while signs and sum(signs.values()) < length:
        signs[max(signs, key=lambda letter: counts[letter])] += 1
    return Text.assemble(*((words.STATE_SIGNS[letter] * n, STATE_STYLES[letter]) for letter, n in signs.items()))


def _legend(shown: Sequence[SiteHistory]) -> Text:
    present = {LETTERS[state] for history in shown for state in set(history.last.tolist())} | {"a", "x"}
    parts = [
        (f"{words.STATE_SIGNS[letter]} {words.STATES[letter]}", STATE_STYLES[letter])
        for letter in words.STATES
        if letter in present and letter != "-"
    ]
    text = Text()
    for index, (label, style) in enumerate(parts):
        text.append("   " if index else "")
        text.append(label, style)
    return text


# Trial ----------------------------------------------------------------------------------------------------------------


def _trial(trial: Trial, width: int) -> Iterator[RenderableType]:
    yield Text.assemble(("Trial", "bold"), (f": {words.trial_terms(trial)}", "dim"))
    yield Text()
    points = numerals.in_points(trial.score, [s for arm in trial.arms for s in arm.scores])
    wide = width >= TRIAL_NARROW
    name = ill_share(trial, trial.control)[0]
    table = Table(box=RULED, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("arm", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("difference (95 %)", justify="right", no_wrap=True)
    table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("parameters", justify="right", no_wrap=True)
    for arm in trial.arms:
        table.add_row(*_arm(trial, arm, 100.0 if points else 1.0, wide))
    yield table
    yield Text()
    yield Text(words.difference_means(trial, points), style="dim")
    for arm in trial.arms:
        if arm.failure:
            yield _item(f"{words.remedy(arm.name)} could not be tried: {arm.failure}")
    if trial.code:
        yield Text()
        yield Text("Do this", style="bold")
        yield Text(indent(_clean(trial.code.strip("\n")), "    "), no_wrap=True)


def _arm(trial: Trial, arm: Arm, scale: float, wide: bool) -> list[Text]:
    winner = arm.name == trial.winner
    name = Text(_clean(words.remedy(arm.name)), style="bold" if winner else "")
    if arm.failure:
        return [name, Text("not tried", style="dim"), *[Text("-", style="dim")] * (4 if wide else 2)]
    if arm.verdict is None:
        verdict = Text("  control", style="dim")
    else:
        verdict = Text(f"{words.VERDICT_MARKS[arm.verdict]} {words.VERDICTS[arm.verdict]}", VERDICT_STYLES[arm.verdict])
    diverged = sum(score is None for score in arm.scores)
    change = numerals.difference(arm.difference, scale)
    if not change:
        change = f"diverged in {diverged} of {len(arm.scores)}" if diverged else "-"
    elif diverged:
        change += f", {diverged} diverged"
    ran = any(score is not None for score in arm.scores)
    share = numerals.percent(ill_share(trial, arm)[1]) if ran else "-"
    row = [name, verdict, Text(change), Text(share)]
    if wide:
        row += (
            [Text(numerals.ratio(arm.cost.time)), Text(numerals.ratio(arm.cost.parameters))]
            if arm.cost
            else [Text("-")] * 2
        )
    return row
