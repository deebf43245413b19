"""How the documentation is built. Nothing here needs the network."""

import dataclasses
import inspect
import json
import re
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

project = "relume"
author = "The relume maintainers"
copyright = author
version = release = installed_version("relume")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"

default_role = "code"  # single backticks in docstrings are code, as they are in Markdown

html_theme = "furo"
html_title = "relume"


def _fields_are_listed(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The fields of a record, with the comments that stand beside them in its source."""
    if not isinstance(obj, type) or not dataclasses.is_dataclass(obj):
        return
    source = inspect.getsource(obj)
    for field in dataclasses.fields(obj):
        found = re.search(rf"^    {field.name}: (.*?)(?: = .*?)?(?:  # (.*))?$", source, re.MULTILINE)
        if found is not None:
            said = re.sub(r"([|*_\\\\])", r"\\\1", found[2] or "")  # plain text: nothing in it is markup
            lines += ["", f":ivar {field.name}: {said}", f":vartype {field.name}: ``{found[1]}``"]


def _examples_are_code(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings indent their examples; reStructuredText would take them for quotations."""
    marked: list[str] = []
    for line in lines:
        begins = line.startswith("    ") and (not marked or not marked[-1].strip())
        if begins and not _inside_code(marked):
            marked += [".. code-block:: python", ""]
        marked.append(line)
    lines[:] = marked


def _inside_code(lines: list[str]) -> bool:
    last = next((line for line in reversed(lines) if line.strip()), "")
    return last.startswith("    ") or last.startswith(".. ")


def _write_catalogue(app: Any) -> None:
    """The page of all functions, from the rows themselves and from what was measured of them."""
    from relume.activations import activations
    from relume.activations.costs import kept_cost, measured_with, saved_bytes
    from relume.activations.notation import as_mathml

    lines = [
        "# Catalogue",
        "",
        f"All {len(activations())} functions, as `relume.activations()` gives them. Cost is the time of forward and "
        "backward of the module over that of a plain copy of the input; behind the stroke, that of the class in "
        f"`relume.nn` that [keeps the tails](guide/activations.md#tails-kept). {measured_with()} Bytes are those that "
        "backward keeps for each float32 of the input.",
        "",
        "| name | formula and source | range | slope at the ends | mean, mean square | cost | bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in activations():
        ends = ", ".join(f"{tail.slope:.4g}" for tail in row.tails())
        kept = f" / {kept_cost(row.name):.2g}" if row.kept else ""
        cells = (
            f"`{row.name}`",
            f"{as_mathml(row.tex)}<br><small>{row.paper}</small>".replace("|", "&#124;"),
            f"{row.range[0]:.4g} to {row.range[1]:.4g}",
            ends,
            f"{round(row.mean, 4) + 0.0:.4g}, {row.second_moment:.4g}",
            f"{row.cost:.2g}{kept}",
            f"{saved_bytes(row.name):.3g}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += _times(json.loads(_CATALOGUE_RESULTS.read_text(encoding="utf-8")))
    _write_if_new(Path(app.srcdir, "catalogue.md"), "\n".join(lines) + "\n")


_CATALOGUE_RESULTS = Path(__file__).parent.parent / "benchmarks/results/catalogue.json"


def _times(results: dict[str, Any]) -> list[str]:
    """A table of all rows' times over those of a copy and of eager torch, for both sizes that were measured."""
    lines = [
        "",
        "## Times",
        "",
        "Forward, and forward with backward, of the module that `relume.nn.module` builds: over a plain copy of the "
        "input, and over the function as people compose it from torch's operators, where torch does not have it. "
        "Medians of rounds in which all take turns, in processor time. Memory is as a program finds it, or "
        "(`keep-memory`) kept by the process, so that nobody pays for new pages.",
        "",
    ]
    lines += [
        f"- {run['elements']:,} numbers: `{run['command']}`, {run['date']}, torch {run['torch']}, {run['machine']}"
        for run in results.values()
    ]
    heads = [f"{key}: {over}" for key in results for over in (("copy", "eager") if " " not in key else ("eager",))]
    lines += ["", f"| name | {' | '.join(heads)} |", "|" + "---|" * (1 + len(heads))]
    for name in next(iter(results.values()))["milliseconds"]:
        cells = [f"`{name}`"]
        for key, run in results.items():
            found = run["milliseconds"][name]
            both = [found["module"][part][1] for part in ("forward", "both")]
            if " " not in key:
                cells.append(", ".join(f"{ms / found['copy']['forward'][1]:.1f}" for ms in both))
            eager = [found["eager"][part][1] for part in ("forward", "both")] if "eager" in found else []
            cells.append(", ".join(f"{ms / other:.2f}" for ms, other in zip(both, eager, strict=False)))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _write_if_new(page: Path, text: str) -> None:
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def _claims_are_written(app: Any) -> None:
    """The page on claims, and the offline page that it links, from the results in the repository."""
    from relume.claims import Results
    from relume.claims.page import document, render

    here = Path(__file__).parent
    data = json.loads((here.parent / "benchmarks/results/claims.json").read_text(encoding="utf-8"))
    results = Results.from_json(data)
    text = document(results, figures="claims-figures.html")
    page = here / "claims.md"
    _write_if_new(page, text)
    figures = Path(app.outdir) / "claims-figures.html"
    figures.parent.mkdir(parents=True, exist_ok=True)
    figures.write_bytes(render(results).encode())


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", _write_catalogue)
    app.connect("builder-inited", _claims_are_written)
    app.connect("autodoc-process-docstring", _examples_are_code)
    app.connect("autodoc-process-docstring", _fields_are_listed)
