"""A pruned network, what was taken out of it, and what that saved: in words and as numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from relume.recording import Proof, to_json
from relume.remedies.units import grouped
from relume.report.numerals import count, number, percent
from relume.surgery import KEEPS_FUNCTION
from relume.symptoms import ENOUGH_SAMPLES

WIDTH = 100  # of plain text
SAME_TIME = 0.05  # relative: medians of passes on a busy machine differ by as much


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Pruned:
    """Copies without their dead units. A site is the activation behind a layer; its units are counted from 0."""

    model: nn.Module
    optimizer: Optimizer | None
    removed: Mapping[str, tuple[int, ...]]  # site -> units, by their numbers before
    left: Mapping[str, Mapping[int, str]]  # site -> dead unit that stays -> why
    units: Mapping[str, int]  # site -> how many it had
    proofs: tuple[Proof, ...]  # of the dead units
    samples: int  # that were read
    batch: int  # samples in the pass that was counted and timed
    output_change: float  # max |dy| / std(y) on the inputs given
    held_out_change: float  # the same on inputs drawn between them, and on noise within the range of each input value
    parameters_before: int
    parameters_after: int
    flops_before: int  # of one pass over the first batch
    flops_after: int
    seconds_before: float | None = None  # median of that pass, measured in turns; None where nothing was removed
    seconds_after: float | None = None
    score_before: float | None = None  # of the training, where there is one
    score_after: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; keys are the attribute names, without the networks."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in ("model", "optimizer", "proofs")}
        return {**plain, "proofs": [to_json(proof) for proof in self.proofs]}

    def scored(self, before: float | None, after: float | None) -> Pruned:
        """The same with the scores of both networks."""
        return replace(self, score_before=before, score_after=after)

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = WIDTH) -> str:
        """Plain text of at most `width` columns, the verdict first."""
        parts = [textwrap.fill(self.headline(), width)]
        if self.removed:
            parts.append("\n".join(_columns(self._savings(), width)))
            rows = [(site, f"{len(units)} of {self.units[site]} units") for site, units in self.removed.items()]
            parts.append("\n".join(["Removed, by activation:", *_columns(rows, width)]))
        rows = [
            (site, f"{count(len(stuck), 'unit')}: {reason}")
            for site, reasons in self.left.items()
            for reason, stuck in grouped(reasons).items()
        ]
        if rows:
            parts.append("\n".join(["Dead, but left in place:", *_columns(rows, width)]))
        return "\n\n".join(parts)

    def headline(self) -> str:
        """The verdict in words."""
        gone, stay = sum(map(len, self.removed.values())), sum(map(len, self.left.values()))
        if not gone and not stay:
            few = "" if self.samples >= ENOUGH_SAMPLES else f" With fewer than {ENOUGH_SAMPLES:,}, only units far from "
            return f"Nothing to remove: no unit is dead on {count(self.samples, 'sample')}." + (
                f"{few}firing count as dead." if few else ""
            )
        if not gone:
            return f"Nothing was removed: {count(stay, 'dead unit')} cannot go."
        proven = {(p.site, unit) for p in self.proofs for unit, sure in zip(p.units, p.hull, strict=True) if sure}
        sure = sum((site, unit) in proven for site, units in self.removed.items() for unit in units)
        how = "all proven dead" if sure == gone else f"{sure} proven dead, the others silent on all samples"
        return (
            f"{count(gone, 'unit')} of {sum(self.units.values()):,} removed, {how}: "
            f"{percent(1 - self.parameters_after / self.parameters_before)} fewer parameters. "
            f"Outputs move by {number(self.output_change)} of their standard deviation, "
            f"and by {number(self.held_out_change)} on held-out inputs within their range"
            f"{', where some of these units open' if self.held_out_change > KEEPS_FUNCTION else ''}."
        )

    def _savings(self) -> list[tuple[str, str]]:
        def pair(before: float, after: float, shown: Any) -> str:
            return f"{shown(before)} -> {shown(after)}, {_less(before, after)}"

        batch = count(self.batch, "sample")
        rows = [
            ("parameters", pair(self.parameters_before, self.parameters_after, "{:,}".format)),
            ("FLOPs", f"{pair(self.flops_before, self.flops_after, '{:,}'.format)}, for {batch}"),
        ]
        if self.seconds_before and self.seconds_after:
            before, after = self.seconds_before, self.seconds_after
            less = _less(before, after) if abs(1 - after / before) >= SAME_TIME else "about the same"
            rows.append(("time", f"{number(1000 * before)} ms -> {number(1000 * after)} ms, {less}, for {batch}"))
        if self.score_before is not None and self.score_after is not None:
            rows.append(("score", f"{number(self.score_before, 4)} -> {number(self.score_after, 4)}"))
        return rows


def _less(before: float, after: float) -> str:
    if after == before:
        return "the same"
    return f"{percent(abs(1 - after / before))} {'less' if after < before else 'more'}"


def _columns(rows: list[tuple[str, str]], width: int) -> list[str]:
    """Two columns, the second wrapped beside the first."""
    indent = 4 + min(max(len(name) for name, _ in rows), width // 3)
    lines = []
    for name, words in rows:
        wrapped = textwrap.wrap(words, max(20, width - indent))
        head = f"  {name}"
        if len(head) + 2 > indent:
            lines.append(head)
            head = ""
        lines += [f"{head if i == 0 else '':<{indent}}{line}" for i, line in enumerate(wrapped)]
    return lines
