"""One offline HTML file, and a small piece of HTML for notebooks."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

from relume.report import sections, words
from relume.report.charts import charts
from relume.report.headline import headline
from relume.report.results import Page

SCRIPTS = ("d3.min.js", "plot.umd.min.js", "page.js")  # Plot needs d3 before it

# What a pattern looks like tells the states apart where colour does not: in print, and for colour-blind readers.
PATTERNS = """
<svg class="patterns" width="0" height="0" aria-hidden="true" focusable="false"><defs>
<pattern id="mark-x" width="9" height="9" patternUnits="userSpaceOnUse"><path d="M3 3l3 3m0-3l-3 3"/></pattern>
<pattern id="mark-p" width="6" height="6" patternUnits="userSpaceOnUse"><path d="M-1 7l8-8"/></pattern>
<pattern id="mark-e" width="8" height="10" patternUnits="userSpaceOnUse"><path d="M4 2v4m0 1.4v1.2"/></pattern>
<pattern id="mark--" width="6" height="6" patternUnits="userSpaceOnUse"><path d="M-1 -1l8 8"/></pattern>
</defs></svg>
"""


def render(page: Page) -> str:
    """A whole page that needs no network: styles, chart code and data are in it."""
    return frame(page.title or headline(page), sections.body(page), charts(page))


def frame(title: str, body: str, data: Any) -> str:
    """A document around a body whose figures the page's script draws from `data`; `title` is plain text."""
    scripts = [_static(name) for name in SCRIPTS]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="{words.LANGUAGE}">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>relume: {escape(title)}</title>",
            f"<style>{_static('page.css')}</style>",
            "</head>",
            "<body>",
            PATTERNS,
            body,
            f'<script type="application/json" id="data">{_data(data)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body>",
            "</html>",
            "",
        ]
    )


def render_inline(page: Page) -> str:
    """A piece of HTML without scripts for a notebook's output cell: the verdict and the tables."""
    style = (
        ".relume{max-width:60em;line-height:1.45}"
        ".relume h1{font-size:1.25em;line-height:1.3;margin:.4em 0}"
        ".relume h2{font-size:1em;margin:1.2em 0 .3em}"
        ".relume .kicker,.relume figure,.relume .cards,.relume .code-note{display:none}"
        ".relume table{border-collapse:collapse;margin:.4em 0}"
        ".relume th,.relume td{text-align:left;padding:.2em .9em .2em 0;border-bottom:1px solid rgba(128,128,128,.3)}"
        ".relume h3{font-size:1em;margin:.8em 0 .2em}"
        ".relume th{font-weight:400;vertical-align:top}.relume td{vertical-align:top}"
        ".relume caption{text-align:left;opacity:.7;padding:0 0 .3em}"
        ".relume .n{text-align:right;white-space:nowrap}"
        ".relume .badge{border:1px solid;border-radius:1em;padding:0 .5em;font-size:.85em}"
        ".relume .since{font-weight:400;opacity:.7}"
        ".relume .strip{display:flex;width:9em;height:.8em;margin-top:.35em;outline:1px solid rgba(128,128,128,.5)}"
        ".relume .ba{background:#2f9f7f}.relume .bs{background:#aed9c8}.relume .bp{background:#e69f00}"
        ".relume .bx{background:#212228}.relume .be{background:#d55e00}"
        ".relume dl div{display:flex;gap:1em}.relume dt{flex:none;width:9em;opacity:.7}.relume dd{margin:0}"
        ".relume pre{overflow-x:auto}"
    )
    return f'<div class="relume"><style>{style}</style>{sections.body(page, static=True)}</div>'


def _data(values: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever a site is called."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    """Only these scripts run, and nothing is loaded from anywhere. Plot sets styles inline."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@lru_cache
def _static(name: str) -> str:
    # Line ends as the HTML parser will have them: the hash in the policy is of what it sees.
    text = (files("relume.report") / "static" / name).read_bytes().decode()
    return text.replace("\r\n", "\n").replace("\r", "\n").strip("\n")
