"""The page in a real browser, without a network."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from records import deep_report, healthy_report, hostile_page, ill_page, ill_report, non_finite_report

from relume.report.headline import headline
from relume.report.html import render
from relume.report.results import Page

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PAGES = {
    "ill": ill_page,
    "healthy": healthy_report,
    "non_finite": non_finite_report,
    "fifty_layers": deep_report,
    "hostile": hostile_page,
}
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"no browser in CI; looked for {', '.join(BROWSERS)}")
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path")
    with playwright_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page from its file, offline; at the end nothing may have been asked for, refused or complained about."""
    complaints: list[str] = []
    contexts = []

    def refuse(route: Any) -> None:
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            complaints.append(f"asked for {route.request.url}")
            route.abort()

    def opened(result: Any, width: int = 1100, scheme: str = "light", script: bool = True) -> Any:
        path = tmp_path / "page.html"
        path.write_bytes(render(Page.of(result)).encode())
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, java_script_enabled=script
        )
        contexts.append(context)
        page = context.new_page()
        page.route("**/*", refuse)
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("a dialog opened"), dialog.dismiss()))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (360, "light")])
def test_page_shows_everything(open_page: Callable[..., Any], tmp_path: Path, name: str, width: int, scheme: str):
    """The verdict stands on top, every chart is drawn, nothing sticks out sideways, and nothing is fetched."""
    result = PAGES[name]()
    page = open_page(result, width, scheme)
    assert page.locator("h1").inner_text().replace("\u2212", "-").replace("\u202f%", " %") == headline(Page.of(result))
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    # Folded charts are drawn when they are seen.
    playwright_api.expect(page.locator("figure[data-chart] svg")).to_have_count(
        page.locator("figure[data-chart]").count()
    )
    report = Page.of(result).report
    assert report is not None
    assert page.locator("figure[data-chart=map] svg").count() == len(report.recording.sites)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot = tmp_path / f"{name}-{width}-{scheme}.png"
    page.screenshot(path=str(shot), full_page=True)
    assert shot.stat().st_size > 10_000


def test_charts_of_the_demo(open_page: Callable[..., Any]):
    """Maps, replays, loss, gradients and trial are drawn, each with its description, axis names and table."""
    page = open_page(ill_page())
    kinds = page.locator("figure[data-chart]").evaluate_all("figures => figures.map(figure => figure.dataset.chart)")
    assert sorted(kinds) == sorted(["map"] * 4 + ["replays", "loss", "gradients", "trial"])
    for label in page.locator(".plot").evaluate_all("plots => plots.map(plot => plot.getAttribute('aria-label'))"):
        assert len(label) > 20
    shown = page.locator("main").inner_text()
    for axis in ("step", "units", "loss", "gradient norm", "layer, input to output", "share of units dead", "points"):
        assert axis in shown
    assert page.locator("details table").count() >= 5


def test_dead_and_background_differ(open_page: Callable[..., Any]):
    """In the dark, dead units are told from the page by colour, by frame and by the crosses on them."""
    page = open_page(ill_report(), scheme="dark")
    dead = page.locator("path.sx").first.evaluate("path => getComputedStyle(path).fill")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dead != paper
    crosses = page.locator("#mark-x path").evaluate("path => getComputedStyle(path).stroke")
    assert _contrast(crosses, dead) > 3


def _contrast(one: str, other: str) -> float:
    """Contrast ratio as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(open_page: Callable[..., Any], scheme: str):
    """Text colours stand out from the page by 4.5 to 1, as WCAG asks for."""
    page = open_page(ill_page(), scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for name in ("ink", "soft", "good", "eased", "bad", "plain"):
        colour = page.evaluate(
            "name => { const probe = document.createElement('i'); probe.style.color = `var(--${name})`;"
            " document.body.append(probe); return getComputedStyle(probe).color; }",
            name,
        )
        assert _contrast(colour, paper) >= 4.5, name


def test_hostile_names_are_text(open_page: Callable[..., Any]):
    """Names that look like markup make no element and run nothing."""
    page = open_page(hostile_page())
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 4
    assert "</script><img src=x onerror=alert(1)>" in page.locator("main").inner_text()


def test_without_script_the_tables_are_there(open_page: Callable[..., Any]):
    """Where scripts are off, verdict, findings and tables can be read."""
    page = open_page(ill_page(), script=False)
    assert page.locator("h1").inner_text().startswith("307 of 512 units died")
    assert page.locator("details table").count() >= 5


def test_code_can_be_copied(open_page: Callable[..., Any]):
    """The button puts the code, or at least a selection of it, at hand; it is reached by keyboard."""
    page = open_page(ill_page())
    button = page.get_by_role("button", name="Copy")
    button.focus()
    page.keyboard.press("Enter")
    # Not `wait_for_function`: it evaluates strings, which the page's own policy forbids.
    at_hand = "document.querySelector('.copy').textContent === 'Copied' || getSelection().toString() !== ''"
    deadline = time.monotonic() + 30
    while not page.evaluate(at_hand):
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


def test_paper_shows_what_is_folded(open_page: Callable[..., Any]):
    """Before printing, folds open and charts shrink to the paper; afterwards all is as it was."""
    page = open_page(ill_page(), scheme="dark")
    folds = page.locator("details").count()
    assert folds > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details[open]").count() == folds
    assert page.locator("figure[data-chart=trial] svg").get_attribute("width") == "680"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 28, 32)"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
