"""A page as a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from relume.errors import RelumeError
from relume.report.results import Page


def save(page: Page, path: Path, kind: str = "") -> Path:
    """Write the page by the suffix of `path`, or as `kind`, ".html" or ".json"; returns the path.

    A folder that is missing is made. Raises RelumeError for another suffix, or where nothing can be written.
    """
    return by_suffix(path, {".html": lambda: _html(page), ".json": lambda: _json(page)}, kind)


def by_suffix(path: Path, writers: Mapping[str, Callable[[], str]], kind: str = "") -> Path:
    """Write what the writer for the suffix of `path`, or for `kind`, gives; raises as `save` does."""
    kind = kind or path.suffix
    if kind not in writers:
        raise RelumeError(
            f"cannot save as {path.name!r}: the suffix says what to write, and {path.suffix or 'none'} says nothing.\n"
            f"Use {' or '.join(writers)}, such as {path.with_suffix('.html').name!r}."
        )
    return write(writers[kind](), path)


def write(text: str, path: Path) -> Path:
    """Write a page's text; a folder that is missing is made. Raises RelumeError where nothing can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Newlines as they are: the page's scripts are known by their hashes.
        path.write_bytes(text.encode())
    except OSError as error:
        raise RelumeError(f"cannot write {path}: {error.strerror or error}.") from None
    return path


def _html(page: Page) -> str:
    from relume.report.html import render

    return render(page)


def _json(page: Page) -> str:
    return json.dumps(page.to_json(), allow_nan=False, separators=(",", ":")) + "\n"
