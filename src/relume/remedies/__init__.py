"""Remedies: the table, and how one is applied to copies of a network and its optimizer.

`REMEDIES` holds one record per remedy; `treat` applies one. `combined` makes one of several. A
remedy of your own is one more `Remedy` record.
"""

from relume.remedies.combination import combined, find_remedy
from relume.remedies.functions import swap_to
from relume.remedies.record import Edit, Network, Remedy, Treated
from relume.remedies.table import REMEDIES
from relume.remedies.treatment import operate, treat

__all__ = ["REMEDIES", "Edit", "Network", "Remedy", "Treated", "combined", "find_remedy", "operate", "swap_to", "treat"]
