"""Options of the test run."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden files are rewritten on demand; read the diff before you commit it."""
    parser.addoption("--overwrite", action="store_true", help="rewrite the files in tests/golden/")
