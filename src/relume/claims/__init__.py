"""Statements people make about activation functions, each with the experiment that tests it here and now.

`CLAIMS` is the table; an experiment is a function that takes a `Lab` and returns a `Finding`. A new claim is one more
row in `table.py`, with its experiment, and a case for which its verdict flips in `tests/test_claims.py`.
"""

from relume.claims.lab import Lab, Setting
from relume.claims.record import Claim, Figure, Finding, Result, Results, Series
from relume.claims.run import chosen, run
from relume.claims.table import CLAIMS

__all__ = [
    "CLAIMS", "Claim", "Figure", "Finding", "Lab", "Result", "Results", "Series", "Setting", "chosen", "run",
]  # fmt: skip
