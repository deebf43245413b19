"""How the catalogue is shown: cards, curves, sentences, the command and its pages."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from test_page import browser  # noqa: F401 - a fixture, found by its name

from relume.activations import ACTIVATIONS, Activation, Tail, activation, activations
from relume.activations.card import bounds, curve, number, reach, svg, window
from relume.activations.flaws import FLAWS
from relume.activations.row import Parameter
from relume.cli import main
from relume.cli.activations import _HELP
from relume.errors import ActivationError
from relume.report import catalogue_page, catalogue_text
from relume.report.catalogue import (
    DEPTH,
    STRENGTHS,
    WEAKNESSES,
    Profile,
    Setting,
    code,
    facts,
    profile,
    strengths,
    to_json,
    weaknesses,
)
from relume.report.plot import plot
from relume.report.selection import FILTERS, Filter, cheaper_than, select, sentence

each_row = pytest.mark.parametrize("row", activations(), ids=lambda row: row.name)
WIDTHS = (60, 80, 120)


def test_pages_say_what_torch_loses():
    """A function's numbers list every flaw of torch's module, and relume's own class where there is one."""
    for row in activations():
        said = dict(facts(row)).get("numerics", "")
        assert all(flaw in said for flaw in FLAWS.get(row.name, ())) and bool(said) == (row.name in FLAWS)
        assert row.kept in said or row.name not in FLAWS
    assert dict(facts(activation("glu")))["numerics"] == "torch.nn.GLU in float32: gradient lost on the right"


# --- curves and cards -------------------------------------------------------------------------------------------------


@each_row
def test_curves_are_the_function(row: Activation):
    """Points lie on the function and its slope, pieces meet at the corners only, and the whole reach is covered."""
    pieces, end = curve(row), reach(row)
    assert pieces[0].x[0] == -end and pieces[-1].x[-1] == end
    assert [p.x[0] for p in pieces[1:]] == sorted({x for x in row.corners() if -end < x < end})
    for p in pieces:
        inner = slice(1, -1)
        np.testing.assert_array_equal(p.value[inner], row.value(p.x[inner]))
        np.testing.assert_array_equal(p.slope[inner], row.slope(p.x[inner]))
    low, high = window(row, [p.value for p in pieces])
    assert low <= 0 <= high and high > low


def test_a_jump_is_between_two_pieces():
    """At a jump each piece ends in the limit from its own side, so that no line is drawn through it."""
    pieces = curve(activation("hardshrink"))
    ends = [(p.value[0], p.value[-1]) for p in pieces]
    np.testing.assert_allclose(ends, [(-4, -0.5), (0, 0), (0.5, 4)], atol=1e-8)
    left, right = curve(activation("relu"))
    assert set(left.slope) == {0.0} and set(right.slope) == {1.0}


@each_row
def test_a_card_is_whole_and_has_no_script(row: Activation):
    """A notebook's card is well-formed markup with formula, picture and facts, and nothing that runs."""
    html = row._repr_html_()
    tree = ElementTree.fromstring(html)
    words = "".join(tree.itertext())
    assert row.name in words and row.module in words and row.paper in words
    assert next(tree.iter("math")) is not None and len(list(tree.iter("path"))) == 3
    assert "<script" not in html and "http" not in html


def test_pictures_stay_in_their_frame():
    """A curve that leaves the picture is cut, not drawn over the page."""
    for row in activations():
        for path in re.findall(r' d="(M[^"H]*)" stroke-width', svg(row, width=300, height=190)):
            numbers = np.array(re.findall(r"(-?[\d.]+),(-?[\d.]+)", path), dtype=float)
            assert (numbers[:, 0] >= 0).all() and (numbers[:, 0] <= 300).all()
            assert (numbers[:, 1] >= 0).all() and (numbers[:, 1] <= 190).all()


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-math.inf, math.inf, "any number"),
        (0.0, math.inf, "0 or more"),
        (-math.inf, 2.0, "2 or less"),
        (0.0, 1.0, "0 to 1"),
    ],
)
def test_bounds_in_words(low: float, high: float, words: str):
    """The values that a parameter may take are said as a reader would."""
    assert bounds(Parameter(default=0.5, low=low, high=high)) == words


def test_small_numbers_have_no_sign_of_zero():
    """Rounding noise reads as 0, and never as -0."""
    assert [number(v) for v in (-0.0, -1e-17, -0.25, math.inf)] == ["0", "0", "-0.25", "inf"]


# --- plots in a terminal ----------------------------------------------------------------------------------------------


def dots(lines: list[str], height: int) -> Iterator[tuple[int, int]]:
    """Where a Braille plot has dots: row and column, counted from the top left."""
    for i, line in enumerate(lines[1 : height + 1]):
        for j, sign in enumerate(line.partition("│")[2]):
            bits = ord(sign) - 0x2800
            if not 0 < bits < 256:
                continue
            for bit, (down, right) in enumerate([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]):
                if bits >> bit & 1:
                    yield 4 * i + down, 2 * j + right


@each_row
def test_braille_dots_lie_on_the_curve(row: Activation):
    """Read back, each dot is within a dot of the function, and every column of the curve has one."""
    pieces = [(p.x, p.value) for p in curve(row, points=801)]
    low, high = window(row, [y for _, y in pieces])
    height, width = 9, 70
    lines = plot("f(x)", pieces, low, high, width, height)
    across = len(lines[-2].lstrip(" └")) + 1
    found = set(dots(lines, height))
    end, step = reach(row), (high - low) / (4 * height - 1)
    for down, right in found:
        x = -end + 2 * end * (right + np.array([-0.6, -0.3, 0.0, 0.3, 0.6])) / (2 * across - 1)
        near = row.value(np.clip(x, -end, end))
        assert near.min() - step <= high - down * step <= near.max() + step
    x = np.linspace(-end, end, 2 * across)
    inside = (row.value(x) >= low) & (row.value(x) <= high)
    assert set(np.flatnonzero(inside)) - {right for _, right in found} == set()


def test_an_ascii_plot_of_a_line():
    """Without Unicode the line x goes from corner to corner, with its numbers and a dotted line at 0."""
    x = np.linspace(-1, 1, 101)
    assert plot("f(x)", [(x, x)], -1.0, 1.0, 12, 3, ascii=True) == [
        "   f(x)",
        " 1|      ***",
        " 0|..*****..",
        "-1|***",
        "  +--------",
        "   -1  0   1",
    ]


# --- sentences --------------------------------------------------------------------------------------------------------

RULES = [*STRENGTHS, *WEAKNESSES]
PLANTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # what must make a rule speak, and what must silence it, both as changes of relu's profile
    "_wide": ({"operands": 2}, {"operands": 1}),
    "_dear": ({"cost": 4.1, "relu_cost": 2.0}, {"cost": 3.9, "relu_cost": 2.0}),
    "_cheap": ({"name": "other", "cost": 2.2, "relu_cost": 2.0}, {"name": "other", "cost": 2.6, "relu_cost": 2.0}),
    "_learns_shape": ({"parameters": {"a": Setting(default=0.25, low=0, high=1, learned=True)}}, {"parameters": {}}),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_rule_speaks_and_is_silent(rule: Any):
    """Each rule has a function that it speaks of, with a whole sentence, and one that it does not speak of."""
    base = profile(activation("relu"))
    if rule.__name__ in PLANTED:
        said = [rule(replace(base, **changes)) for changes in PLANTED[rule.__name__]]
        assert said[0] and not said[1]
    else:
        said = [rule(profile(row)) for row in activations()]
    spoken = [sentence for sentence in said if sentence]
    assert spoken and len(spoken) < len(said)
    for one in spoken:
        assert one[0].isupper() and one.endswith(".") and "nan" not in one and "None" not in one


@each_row
def test_where_a_function_is_flat(row: Activation):
    """What a profile says of flat ends holds on both sides of each edge, for exact zeros, 1 % and float16."""
    p = profile(row)
    top = p.max_slope if math.isfinite(p.max_slope) else abs(float(row.slope(np.float64(0))))
    tests: tuple[tuple[float, float, Any], ...] = (
        (p.dead_below, p.dead_above, lambda s: s == 0),
        (p.flat_below, p.flat_above, lambda s: abs(s) <= 0.01 * top * (1 + 1e-9)),
    )
    if math.isfinite(p.max_slope):
        tests += ((p.float16_below, p.float16_above, lambda s: np.float16(s) == 0),)
    for below, above, flat in tests:
        for edge, out in ((below, -1.0), (above, 1.0)):
            if math.isfinite(edge):
                away = max(1.0, abs(edge)) * 1e-6
                assert flat(float(row.slope(np.float64(edge + out * away))))
                assert not flat(float(row.slope(np.float64(edge - out * away))))
    if p.flat_inside is not None:
        assert not np.any(row.slope(np.linspace(*p.flat_inside, 101)[1:-1]))


@pytest.mark.parametrize(
    ("name", "ratio"), [("relu", 0.5**14.5), ("leaky_relu", (1.0001 / 2) ** 14.5), ("prelu", (1.0625 / 2) ** 14.5)]
)
def test_gradients_at_xavier_in_closed_form(name: str, ratio: float):
    """For leaky functions the gradient through 30 layers is ((1 + a^2) / 2)^(29/2), and a sentence says so."""
    p = profile(activation(name))
    assert p.gradient_at_xavier == pytest.approx(ratio, rel=1e-9)
    said = next(s for s in weaknesses(p) if "Xavier" in s)
    told = float(re.search(r"shrink to (\S+) of", said).group(1))  # pyright: ignore[reportOptionalMemberAccess]
    assert told == pytest.approx(ratio, rel=0.05)


def test_gradients_at_xavier_by_simulation():
    """A wide sigmoid network of 30 layers shrinks its gradient as the profile says, within a factor 2."""
    rng, width = np.random.default_rng(0), 600
    h, slopes, weights = rng.standard_normal((8, width)), [], []
    for _ in range(DEPTH):
        weights.append(rng.standard_normal((width, width)) / math.sqrt(width))
        z = h @ weights[-1]
        h, slopes = 1 / (1 + np.exp(-z)), [*slopes, np.exp(-z) / (1 + np.exp(-z)) ** 2]
    g = last = rng.standard_normal((8, width)) * slopes[-1]
    for w, slope in zip(reversed(weights[1:]), reversed(slopes[:-1]), strict=True):
        g = (g @ w.T) * slope
    measured = np.sqrt((g**2).mean() / (last**2).mean())
    predicted = profile(activation("sigmoid")).gradient_at_xavier
    assert predicted is not None and 0.5 < measured / predicted < 2


def test_known_sentences():
    """Published and measured figures stand in the sentences: ReLU's mean, LayerNorm on sigmoid, BatchNorm on ReLU."""
    relu, sigmoid = (profile(activation(name)) for name in ("relu", "sigmoid"))
    assert weaknesses(relu)[:2] == [
        "Units can die: the slope is exactly 0 for x <= 0.",
        "Off-centre: mean 0.40 for standard normal inputs.",
    ]
    assert "LayerNorm before it does not cure that: squared gradients shrink to 0.153 a layer." in weaknesses(sigmoid)
    chi = 0.5 / (0.5 - 1 / (2 * math.pi))  # E[f'^2] / Var[f] of ReLU
    assert (
        f"With BatchNorm before it gradients grow {chi ** ((DEPTH - 1) / 2):.0f}-fold through 30 layers: "
        f"squared, {chi:.2f}-fold a layer."
    ) in weaknesses(relu)
    assert any("Self-normalising" in s for s in strengths(profile(activation("selu"))))
    assert "Units can die: the slope is exactly 0 from -0.5 to 0.5." in weaknesses(profile(activation("softshrink")))
    assert not any("can die" in s for s in weaknesses(sigmoid))


@pytest.mark.parametrize("name", ["relu_squared", "geglu", "swiglu", "exp"])
def test_nothing_is_said_of_batch_norm_where_it_is_not_known(name: str):
    """Of functions that outgrow lines, whose samples BatchNorm does not keep in size, no sentence speaks of it."""
    p = profile(activation(name))
    assert not any("BatchNorm" in s for s in strengths(p) + weaknesses(p))
    assert dict(facts(activation(name)))["chi, BatchNorm"].startswith("not known")


def test_what_was_not_measured_is_not_judged():
    """Without a cost there is no sentence on it, and the facts say so; a gate cannot take another function's place."""
    row = activation("relu")
    unknown = replace(profile(row), cost=math.nan)
    said = [*strengths(unknown), *weaknesses(unknown)]
    assert not any("Costs" in s for s in said)
    gate = replace(row, name="gate", operands=2, f=lambda a, b: a * b, df=lambda a, b: (b, a), layout="halves")
    assert profile(gate).moments.second == pytest.approx(1) and "swap_to" not in "".join(code(gate))
    assert "twice" in " ".join(weaknesses(profile(gate))) or "Reads 2 numbers" in " ".join(weaknesses(profile(gate)))
    for render in (catalogue_page.render_row, str, Activation._repr_html_):
        assert "gate" in render(gate)


def test_ends_without_a_limit():
    """A sine has no slope far out: it is shown with that in words, and nothing is claimed of its ends."""
    sine = replace(
        activation("identity"), name="sine", tex=r"\sin x", f=np.sin, df=np.cos, left=Tail(math.nan),
        right=Tail(math.nan), range=(-1.0, 1.0), monotone=False,
    )  # fmt: skip
    half = replace(profile(sine), right=Tail(1.0, knee=0.0))
    said = [*strengths(half), *strengths(profile(sine)), *weaknesses(profile(sine))]
    assert not any("nan" in s or "end is flat" in s for s in said)
    assert dict(facts(sine))["slope at the ends"] == "left without a limit, right without a limit"
    for text in (str(sine), sine._repr_html_(), catalogue_page.render_row(sine)):
        assert "without a limit" in text


@each_row
def test_the_code_of_a_function_runs(row: Activation):
    """The two lines that build a module give one that computes the function."""
    session: dict[str, Any] = {}
    exec("\n".join(code(row)[:2]), session)
    if row.layout == "elementwise":
        x = np.linspace(-7, 7, 57)
        found = session["layer"].double().eval()(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(found, row.value(x), rtol=1e-6, atol=1e-6)


def test_the_trial_in_the_code_runs():
    """The lines that put a function into a network do that."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    session: dict[str, Any] = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    exec("\n".join(code(activation("gelu_tanh"))), session)
    assert isinstance(session["treated"].model[1], torch.nn.GELU)


# --- selections -------------------------------------------------------------------------------------------------------


def test_filters_ask_for_the_properties():
    """Each filter keeps exactly the rows with its property, and several keep those with all."""
    every = activations()
    by_hand = {
        "zero-centred": {r.name for r in every if r.zero_centred},
        "cannot-die": {r.name for r in every if not r.can_die},
        "bounded": {r.name for r in every if all(map(math.isfinite, r.range))},
    }
    for one in FILTERS:
        if one.option in by_hand:
            assert {r.name for r in select(every, [one]).rows} == by_hand[one.option]
    both = select(every, [FILTERS[0], FILTERS[6]])
    assert {r.name for r in both.rows} == by_hand["zero-centred"] & by_hand["cannot-die"]
    assert "relu" not in {r.name for r in both.rows} and "tanh" in {r.name for r in both.rows}


@pytest.mark.parametrize(
    ("options", "names", "said"),
    [
        ([], ["relu", "tanh"], "2 activation functions."),
        (["zero-centred"], ["relu", "tanh"], "1 of 2 functions is zero-centred."),
        (["zero-centred", "smooth", "cannot-die"], ["tanh", "identity", "relu"],
         "2 of 3 functions are zero-centred and smooth, and cannot die."),
        (["cannot-die", "cannot-saturate"], ["identity", "relu"], "1 of 2 functions cannot die and cannot saturate."),
        (["zero-centred", "smooth", "bounded"], ["tanh", "softsign"],
         "2 of 2 functions are zero-centred, smooth and bounded."),
        (["bounded", "cannot-saturate", "smooth"], ["tanh", "relu"],
         "None of 2 functions is bounded and smooth, and cannot saturate: --bounded leaves 1, "
         "then --cannot-saturate leaves none."),
    ],
)  # fmt: skip
def test_a_selection_in_words(options: list[str], names: list[str], said: str):
    """The first line counts and says in words what was asked; where nothing is left, which filter took the last."""
    known = {one.option: one for one in FILTERS}
    assert sentence(select(map(activation, names), [known[o] for o in options])) == said


def test_cheaper_than_compares_costs(monkeypatch: pytest.MonkeyPatch):
    """Only functions with a smaller measured cost are cheaper; without a cost to compare with, that is an error."""
    costs = {"relu": 2.0, "gelu": 4.0, "tanh": 5.0}
    monkeypatch.setattr(Activation, "cost", property(lambda row: costs.get(row.name, math.nan)))
    chosen = select(activations(), [cheaper_than("gelu")])
    assert [r.name for r in chosen.rows] == ["relu"]
    assert sentence(chosen) == f"1 of {len(ACTIVATIONS)} functions is cheaper than gelu."
    with pytest.raises(ActivationError, match=r"the cost of elu was not measured.*\nCompare with one that has a cost"):
        cheaper_than("elu")
    with pytest.raises(ActivationError, match="Closest: gelu"):
        cheaper_than("gellu")


def test_options_are_the_filters():
    """The command has an option for each filter, and none that filters nothing."""
    assert list(_HELP) == [one.option for one in FILTERS]


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["activations", *arguments])


def test_the_command_filters():
    """Options select rows, the sentence comes first, and the rows are in the table."""
    result = run("--zero-centred", "--cannot-die", "--smooth")
    assert result.exit_code == 0, result.output
    first, *rest = result.stdout.splitlines()
    assert re.fullmatch(r"\d+ of \d+ functions are zero-centred and smooth, and cannot die\.", first)
    names = {line.split()[0] for line in rest if line.strip()}
    assert {"tanh", "softsign"} <= names and not {"relu", "sigmoid", "selu"} & names


def test_an_unknown_name_gets_the_closest(tmp_path: Path):
    """A name that the catalogue lacks exits with 2 and says which are close; so does a name beside a filter."""
    result = run("geluu")
    assert result.exit_code == 2 and "Closest: gelu" in result.stderr and not result.stdout
    both = run("gelu", "--smooth")
    assert both.exit_code == 2 and "'gelu' asks for one function, and --smooth for many" in both.stderr


def test_json_holds_the_numbers(tmp_path: Path):
    """JSON has every property under its name, for one function and for many, on standard output or in a file."""
    one = json.loads(run("selu", "--json", "-").stdout)
    assert one["name"] == "selu" and one["range"] == [pytest.approx(-1.7581, abs=1e-4), "inf"]
    assert one["moments"]["chi_ln"] == pytest.approx(1.0716, abs=1e-4)
    assert one["strengths"] and one["weaknesses"] and one["zero_centred"] is True
    path = tmp_path / "new" / "rows.json"
    result = run("--bounded", "--json", str(path))
    assert result.exit_code == 0 and str(path) in result.stderr
    many = json.loads(path.read_text())
    assert many and all(isinstance(row["range"][0], float) for row in many)


def test_html_is_written(tmp_path: Path):
    """--html writes a page, for one function and for a selection that may be empty."""
    nobody = ["--bounded", "--cannot-saturate", "--monotone"]
    for name, arguments in {"one": ["mish"], "all": [], "none": nobody}.items():
        path = tmp_path / f"{name}.html"
        result = run(*arguments, "--html", str(path))
        assert result.exit_code == 0 and path.read_text().startswith("<!doctype html>")
    assert "None of" in (tmp_path / "none.html").read_text()


def test_the_command_loads_no_torch(tmp_path: Path):
    """The catalogue, its text and its pages work without torch."""
    check = (
        "import sys; from relume.cli import main\n"
        f"main(['activations', 'relu', '--html', {str(tmp_path / 'a.html')!r}], standalone_mode=False)\n"
        f"main(['activations', '--html', {str(tmp_path / 'b.html')!r}], standalone_mode=False)\n"
        "import relume; relume.activation('relu')._repr_html_()\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", check],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", WIDTHS)
def test_text_fits_the_terminal(width: int, encoding: str):
    """At every width, with and without Unicode, no line but copied code is longer than the terminal is wide."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(
        file=file, width=width, color_system=None, force_terminal=False, legacy_windows=False, _environ={}
    )
    catalogue_text.print_table(select(activations(), []), console)
    for row in activations():
        catalogue_text.print_row(row, console)
    file.flush()
    lines = raw.getvalue().decode(encoding).splitlines()
    assert [line for line in lines if len(line) > width and not line.startswith("  ")] == []
    assert ("⣀" in raw.getvalue().decode(encoding)) == (encoding == "utf-8")


def test_a_wide_table_has_more_columns():
    """The narrow table keeps the name and whether units die; the wide one adds values and formulas."""

    def heads(width: int) -> str:
        file = io.StringIO()
        console = Console(file=file, width=width, color_system=None, force_terminal=False, _environ={})
        catalogue_text.print_table(select(map(activation, ("relu", "gelu_tanh")), []), console)
        return file.getvalue()

    narrow, wide = heads(40), heads(140)
    assert "dies" in narrow and "f(x)" not in narrow and "values" not in narrow
    assert "f(x)" in wide and "max(0, x)" in wide and "…" in wide


# --- the pages --------------------------------------------------------------------------------------------------------


def visit(browser: Any, tmp_path: Path, html: str, width: int, scheme: str) -> tuple[Any, list[str]]:  # noqa: F811
    """The page opened from a file, offline, and the list that its complaints go to."""
    path = tmp_path / "page.html"
    path.write_bytes(html.encode())
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True).new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith("file:") else complaints.append(asked.url))
    page.goto(path.as_uri())
    return page, complaints


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
@pytest.mark.parametrize("name", ["relu", "gelu_tanh", "exp", "hardshrink"])
def test_a_function_s_page_draws_its_curves(
    browser: Any, tmp_path: Path, name: str, width: int, scheme: str  # noqa: F811
):  # fmt: skip
    """Both curves are drawn without gaps, nothing is asked for or complained of, and nothing scrolls sideways."""
    row = activation(name)
    page, complaints = visit(browser, tmp_path, catalogue_page.render_row(row), width, scheme)
    page.wait_for_selector("figure svg")
    assert page.locator("figure svg").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    lines = page.eval_on_selector_all("figure svg [aria-label=line] path", "all => all.map(p => p.getAttribute('d'))")
    pieces = len(curve(row))
    assert len(lines) == 2 * pieces
    assert all(line.count("M") == 1 for line in lines)
    assert page.locator("h1").inner_text() == name and page.locator("math").is_visible()
    assert not complaints


@pytest.mark.browser
def test_the_table_leads_to_each_function(browser: Any, tmp_path: Path):  # noqa: F811
    """A name in the table opens its function, whose curves are drawn then; the keyboard does it too."""
    html = catalogue_page.render_table(select(activations(), []))
    page, complaints = visit(browser, tmp_path, html, 900, "dark")
    assert page.locator("tbody tr").count() == len(ACTIVATIONS) and page.locator("details[open]").count() == 0
    page.locator("a[href='#elu']").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("details[open] figure svg")
    assert page.locator("details[open] h2").first.inner_text() == "elu"
    assert page.locator("details[open] figure svg").count() == 2
    assert not complaints


@pytest.mark.parametrize("name", ["<b>&\"'", "a' onclick='x"])
def test_names_cannot_break_out(name: str):
    """A row of the reader's own with markup in its name is shown, not obeyed."""
    row = replace(activation("relu"), name=name, paper="<script>alert(1)</script>, 2020", when="<i>")
    for html in (row._repr_html_(), catalogue_page.render_row(row), catalogue_page.render_table(select([row], []))):
        own = html.partition("<body>")[2].partition('<script type="application/json"')[0] or html
        assert "<script>alert" not in own and "<b>&" not in own and "<i>" not in own and "' onclick='" not in own


def test_a_profile_is_plain_values():
    """A profile turns into JSON without NaN, infinities as words."""
    for row in activations():
        json.dumps(to_json(row), allow_nan=False)
    assert isinstance(profile(activation("relu")), Profile) and isinstance(FILTERS[0], Filter)


def test_the_guide_lists_the_filters():
    """The table of filters in the guide is that of the command."""
    guide = (Path(__file__).parents[1] / "docs" / "guide" / "activations.md").read_text()
    listed = re.findall(r"^\| `--([a-z-]+)", guide, re.MULTILINE)
    assert listed == [*(one.option for one in FILTERS), "cheaper-than"]


def test_curves_of_several_numbers_say_along_which():
    """The curve of a gate and that of softmax say what is held; one of a function of one number needs no word."""
    for name, said in (("swiglu", "along the last operand, the others at 1"), ("softmax", "the first of two outputs")):
        assert said in dict(facts(activation(name)))["curves"]
        assert f"Curves {dict(facts(activation(name)))['curves']}" in catalogue_page.render_row(
            activation(name)
        ).replace("&#x27;", "'")
    assert "curves" not in dict(facts(activation("gelu")))
