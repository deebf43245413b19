"""What a user is handed: a report, a trial, a healed network, as text, JSON and one offline HTML file."""

from relume.report.results import Healed, Report, Trial

__all__ = ["Healed", "Report", "Trial"]
