"""README and guide: their Python runs, their tables say what the code says, their links lead somewhere."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from wanting import shut, wanting

from relume.activations import activations
from relume.errors import RemedyError
from relume.remedies import REMEDIES, treat

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/guide").glob("*.md")])
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def table(page: str, head: str) -> list[list[str]]:
    """The rows of every table on a page of the guide whose first column is `head`."""
    rows, inside = [], False
    for line in (ROOT / "docs/guide" / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == head:
            inside = True
        elif inside and not cells[0].startswith("-"):
            rows.append(cells)
    return rows


@pytest.mark.parametrize("page", [p for p in PAGES if CODE.search(p.read_text())], ids=lambda p: p.stem)
def test_the_python_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run in order, as a reader would paste them into one session."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    session: dict[str, object] = {"__name__": "__main__"}
    try:
        for block in CODE.findall(page.read_text()):
            exec(compile(block, str(page), "exec"), session)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link and picture of a page is there."""
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("row", [r for r in table("verdicts.md", "constant")], ids=lambda row: row[0])
def test_a_threshold_is_the_code_s(row: list[str]) -> None:
    """Each number on the page of words is the constant that it names."""
    module, name = row[0].strip("`").split(".")
    assert float(row[1]) == getattr(importlib.import_module(f"relume.{module}"), name)


def test_the_table_of_remedies_is_the_code_s() -> None:
    """The guide lists every remedy, in order, with the code's own words."""
    said = [(name.strip("`"), title, when) for name, title, _, when in table("remedies.md", "name")]
    assert said == [(remedy.name, remedy.title, remedy.when) for remedy in REMEDIES.values()]


@pytest.mark.parametrize("row", table("remedies.md", "name"), ids=lambda row: row[0])
def test_what_a_remedy_keeps(row: list[str]) -> None:
    """The guide says of each remedy whether it keeps the function, of fresh and of trained networks."""
    kept = {"yes": (True, True), "trained": (False, True), "trained, for ReLU": (False, True), "no": (False, False)}
    fresh, trained = (_keeps(row[0].strip("`"), after) for after in (0, 3))
    assert (fresh in (None, kept[row[2]][0])) and (trained in (None, kept[row[2]][1]))
    assert fresh is not None or trained is not None


def _keeps(remedy: str, steps: int) -> bool | None:
    """Whether the remedy keeps a network that wants it, after some steps of training; None where it refuses."""
    model, optimizer, x, y = wanting(remedy)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    if steps:
        shut(model)
    try:
        return treat(model, optimizer, remedy, example_input=x, targets=[y]).keeps_function
    except RemedyError:
        return None


def test_the_catalogue_s_page_is_the_catalogue() -> None:
    """Every row stands on the page, in order, with its paper and the cost that was measured last."""
    page, _, _ = (ROOT / "docs/catalogue.md").read_text().partition("\n## Times\n")
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(lines) == len(activations())
    for line, row in zip(lines, activations(), strict=True):
        assert line.startswith(f"| `{row.name}` |")
        assert row.paper.replace("|", "&#124;") in line
        assert f"| {row.cost:.2g}" in line


def test_the_catalogue_s_page_has_the_times_that_were_measured_last() -> None:
    """Every row stands in the table of times with its ratios at each size, below the command and date of each run."""
    _, _, page = (ROOT / "docs/catalogue.md").read_text().partition("\n## Times\n")
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    results = json.loads((ROOT / "benchmarks/results/catalogue.json").read_text())
    assert {1_000_000, 16_000_000} == {run["elements"] for run in results.values()}
    assert all(f"`{run['command']}`, {run['date']}, torch {run['torch']}" in page for run in results.values())
    assert [line.split("`")[1] for line in lines] == [row.name for row in activations()]
    for line, row in zip(lines, activations(), strict=True):
        for run in results.values():
            found = run["milliseconds"][row.name]
            if "eager" in found:
                ratios = [found["module"][part][1] / found["eager"][part][1] for part in ("forward", "both")]
                assert f"| {ratios[0]:.2f}, {ratios[1]:.2f} |" in line
