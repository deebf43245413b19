"""Reports as text and as files."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from records import (
    ATTACK,
    deep_report,
    healed,
    healthy_report,
    hostile_page,
    ill_page,
    ill_report,
    non_finite_report,
    recording,
    trial,
)
from rich.console import Console

from relume.diagnosis import Coverage, Diagnosis, Severity
from relume.errors import RelumeError
from relume.recording import InitialWeight, Recording
from relume.report import html, numerals, text
from relume.report.charts import charts, unit_map
from relume.report.headline import headline
from relume.report.history import NEVER, histories
from relume.report.results import Page, Report
from relume.symptoms import Kind, Symptom
from relume.verdicts import Difference

GOLDEN = Path(__file__).parent / "golden"
PAGES = {
    "demo": ill_page,
    "healthy": healthy_report,
    "non_finite": non_finite_report,
    "fifty_layers": deep_report,
    "trial": trial,
    "hostile": hostile_page,
}


# Text -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [None, 60, 120])
@pytest.mark.parametrize("name", PAGES)
def test_text_is_as_agreed(request: pytest.FixtureRequest, name: str, width: int | None):
    """The text of a page equals its golden file, and no line is wider than asked but code."""
    page = Page.of(PAGES[name]())
    shown = text.render(page, width)
    file = GOLDEN / f"report_{name}{f'_{width}' if width else ''}.txt"
    if request.config.getoption("--overwrite"):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(f"{shown}\n".encode())
    assert f"{shown}\n" == file.read_bytes().decode()
    if width:
        before_code = shown.partition("\nDo this\n")[0]
        assert max(map(len, before_code.splitlines())) <= width


def test_str_begins_with_the_whole_verdict():
    """The first line of `str(result)` is the headline, unbroken."""
    result = healed()
    assert str(result).splitlines()[0] == headline(Page.of(result))


@pytest.mark.parametrize("make", [healthy_report, ill_report, trial])
def test_text_is_ascii(make):
    """What relume itself says can be printed wherever Python can print."""
    str(make()).encode("ascii")


def test_plain_text_ignores_the_shell(monkeypatch: pytest.MonkeyPatch):
    """`str(result)` is the same whatever colours and widths the environment asks for."""
    expected = str(ill_report())
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "40"), ("TERM", "dumb"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    assert str(ill_report()) == expected


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_terminal_has_the_same_words_in_colour(environment: dict[str, str], coloured: bool):
    """A terminal shows colours unless NO_COLOR is set, and with either the words that plain text has."""
    console = Console(
        file=io.StringIO(), force_terminal=True, color_system="truecolor", width=120, legacy_windows=False,
        _environ=environment,
    )  # fmt: skip
    with console.capture() as captured:
        text.print_rich(ill_page(), console)
    shown = captured.get()
    assert ("\x1b[1;31m" in shown) is coloured
    plain = "\n".join(line.rstrip() for line in _without_codes(shown).splitlines())
    assert plain == text.render(ill_page(), 120)


def test_names_cannot_steer_the_terminal():
    """An escape sequence in a site's name is shown, not obeyed."""
    assert "\x1b" not in text.render(hostile_page())
    assert "?[31mred" in text.render(hostile_page())


def _without_codes(shown: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


# Headlines ------------------------------------------------------------------------------------------------------------


def one_symptom(
    kind: Kind, cause: str, *, site: str = "act2", units: int = 0, born: bool = False, since: int = 0,
    severity: Severity = "critical",
) -> Report:  # fmt: skip
    """A report with one diagnosis of one symptom, on a healthy recording."""
    base = healthy_report()
    symptom = Symptom(kind=kind, site=site, units=tuple(range(units)), share=units / 128, since=since, born=born)
    diagnosis = Diagnosis(
        cause=cause,  # pyright: ignore[reportArgumentType] # each is one of the causes
        severity=severity, since=since, symptoms=(symptom,), because=(), remedies=(),
    )  # fmt: skip
    initial = {**base.recording.initial, "fc2.bias": InitialWeight(shape=(128,), fan_in=128, mean=-30.0, std=0.0)}
    return replace(base, diagnoses=(diagnosis,), recording=replace(base.recording, initial=initial))


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (one_symptom("dead", "bias", units=96, born=True), "96 of 128 units of fc2 were born dead: bias at -30."),
        (
            one_symptom("saturated", "initial_scale", units=60, born=True),
            "60 of 128 units of fc2 are saturated from the start because the initial weights have the wrong scale.",
        ),
        (
            one_symptom("vanishing", "saturating_activation", site="act1"),
            "Gradients vanish on the way to fc1 because the activation function saturates.",
        ),
        (
            one_symptom("exploding", "learning_rate_too_high", site="", since=40),
            "Values explode from step 40 on, because the learning rate is too high.",
        ),
        (
            one_symptom("non_finite", "unscaled_targets", site="", since=1200),
            "The loss is not finite from step 1,200 on, because the targets are not scaled.",
        ),
        (
            one_symptom("not_learning", "unknown", site=""),
            "The network does not learn in 300 steps; no cause was proven.",
        ),
        (
            one_symptom("oscillating", "learning_rate_too_high", site="", since=7),
            "The loss oscillates from step 7 on, because the learning rate is too high.",
        ),
        (
            one_symptom("off_centre", "unknown", severity="note"),
            "Healthy: 4 of 4 activation calls watched over 300 steps, no unit dead.",
        ),
    ],
    ids=lambda value: value.diagnoses[0].symptoms[0].kind if isinstance(value, Report) else "",
)
def test_headline_says_what_and_why(report: Report, expected: str):
    """Each kind of symptom has its own first sentence."""
    assert headline(Page.of(report)) == expected


def test_headline_of_the_demo():
    """Finding, cause and cure stand in one line."""
    assert headline(ill_page()) == (
        "307 of 512 units died, most within 40 steps, because the learning rate is too high. "
        "Cured by BatchNorm in 5 of 5 seeds."
    )


def test_headline_admits_what_was_not_seen():
    """With blind spots a report without findings does not call the network healthy."""
    report = healthy_report()
    partly = replace(report, coverage=Coverage(sites=("a", "b"), watched=("a",), blind=("b is compiled",)))
    blind = replace(report, coverage=Coverage(sites=("a",), watched=(), blind=("a is compiled",)))
    assert headline(Page.of(partly)).startswith("No fault where relume could look: 1 of 2 activation calls")
    assert headline(Page.of(blind)).startswith("Nothing could be judged: none of 1 activation call")


def test_headline_without_a_winner():
    """A trial that proves nothing says so."""
    undecided = replace(trial(), winner=None)
    assert headline(Page(report=ill_report(), trial=undecided)).endswith("None of the 10 tried was proven to help.")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"), (1.0, "1"), (0.5, "0.5"), (0.12345, "0.12"), (12.34, "12"), (-30.0, "-30"), (1234.0, "1,200"),
        (2.5e7, "2.5e7"), (1e-5, "1e-5"), (0.00042, "4.2e-4"), (float("nan"), "NaN"), (float("inf"), "infinite"),
        (None, "none"),
    ],
)  # fmt: skip
def test_numbers_have_the_digits_they_deserve(value: float | None, expected: str):
    """Two digits, and words for what is no number."""
    assert numerals.number(value) == expected


@pytest.mark.parametrize(
    ("share", "expected"), [(0, "0 %"), (0.001, "under 1 %"), (0.144, "14 %"), (0.9999, "over 99 %"), (1, "100 %")]
)
def test_percent_never_rounds_to_none_or_all(share: float, expected: str):
    """A share that is not 0 or 1 is not written so."""
    assert numerals.percent(share) == expected


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (Difference(mean=3.31, low=1.22, high=5.39), "+3.3 (1.2 to 5.4)"),
        (Difference(mean=-0.00412, low=-0.01, high=0.002), "-0.0041 (-0.0100 to 0.0020)"),
        (Difference(mean=-50.2, low=-84.0, high=-16.1), "-50 (-84 to -16)"),
        (Difference(mean=0.0, low=0.0, high=0.0), "0 (0 to 0)"),
    ],
)
def test_a_difference_has_the_digits_its_interval_leaves(difference: Difference, expected: str):
    """The width of the interval decides on the decimals."""
    assert numerals.difference(difference) == expected


# What became of the units ---------------------------------------------------------------------------------------------


def test_history_agrees_with_what_was_planted():
    """Units that the builder killed are dead from then on, and no other."""
    run, deaths = recording(3)
    report = Report(diagnoses=(), coverage=Coverage(sites=(), watched=()), recording=run)
    for history, when in zip(histories(report), deaths, strict=True):
        planted = when <= run.steps
        np.testing.assert_array_equal(history.died != NEVER, planted)
        first_readings = history.steps[np.searchsorted(history.steps, when[planted])]
        assert (history.died[planted] <= first_readings).all()


def test_map_rows_are_sorted_and_whole():
    """Each row of a map covers every column, rows together cover every unit shown, and deaths come in order."""
    report = deep_report()
    for history in histories(report)[10:14]:
        coded = unit_map(history, report.recording)
        assert sum(count for count, _ in coded["rows"]) == coded["shown"]
        for _, code in coded["rows"]:
            lengths = [int(part) for part in "".join(c if c.isdigit() else " " for c in code).split()]
            assert sum(lengths) == len(coded["edges"]) - 1
        alive_first = [code.partition("x")[0] for _, code in coded["rows"] if "x" in code]
        assert len(alive_first) == sum("x" in code for _, code in coded["rows"][: len(alive_first)])


def test_an_empty_recording_can_be_shown():
    """A run that ended before its first reading gives a page all the same."""
    report = Report(diagnoses=(), coverage=Coverage(sites=(), watched=()), recording=Recording())
    assert str(report)
    assert "<h1>" in html.render(Page.of(report))
    assert html.render_inline(Page.of(report))


# Files ----------------------------------------------------------------------------------------------------------------


def test_json_of_one_result_is_that_result(tmp_path: Path):
    """`save` of a report, a trial or a healed network writes its own attributes; a demo page all three."""
    for result in (ill_report(), trial(), healed()):
        path = result.save(tmp_path / "new" / "result.json")
        assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(result.to_json()))
    demo = Page(report=ill_report(), trial=trial(), healed=healed())
    assert list(demo.to_json()) == ["report", "trial", "healed"]


def test_numbers_that_json_lacks_are_text(tmp_path: Path):
    """A report of a run that ended in NaN is valid JSON, and its page's data too."""
    report = non_finite_report()
    json.loads(report.save(tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    json.dumps(charts(Page.of(report)), allow_nan=False)


def test_save_says_what_it_can_write(tmp_path: Path):
    """Another suffix is an error that names the two there are."""
    with pytest.raises(
        RelumeError, match=r"cannot save as 'report\.pdf'.*\n.*\.html or \.json, such as 'report\.html'"
    ):
        ill_report().save(tmp_path / "report.pdf")
    (tmp_path / "file").touch()
    with pytest.raises(RelumeError, match="cannot write"):
        ill_report().save(tmp_path / "file" / "report.html")


def test_page_stays_small():
    """Fifty layers of 512 units fit in a page that can be mailed."""
    assert len(html.render(Page.of(deep_report())).encode()) < 3_000_000


def test_notebook_piece_runs_nothing():
    """What a notebook shows has no script and lets no name out of its place."""
    shown = html.render_inline(hostile_page())
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;img" in shown
    assert healed()._repr_html_().startswith("<div")


def test_page_holds_no_name_as_markup():
    """A hostile name appears in the page as text only."""
    assert ATTACK not in html.render(hostile_page())


def test_reports_need_no_torch():
    """Judging and showing a saved recording works where torch is missing."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import relume.report.text, relume.report.html, relume.report.save"
    )  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
