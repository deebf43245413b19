"""Remedies by name, and several of them as one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from relume.errors import RemedyError
from relume.remedies.record import Edit, Network, Remedy
from relume.remedies.table import REMEDIES

PLUS = "+"  # between the names of a combination


def combined(*remedies: str | Remedy) -> Remedy:
    """One remedy that is several, applied one after the other; each sees what those before it have done.

    Raises RemedyError for an unknown name, and for fewer than two or the same one twice. Applied, it raises where one
    of its parts cannot be: half a combination is another remedy.

    >>> combined("lower_learning_rate", "recycle").name
    'lower_learning_rate+recycle'
    """
    parts = [remedy if isinstance(remedy, Remedy) else find_remedy(remedy) for remedy in remedies]
    names = [part.name for part in parts]
    if len(parts) < 2 or len(set(names)) < len(names):
        raise RemedyError(f"a combination is of two or more different remedies; found {', '.join(names) or 'none'}.")

    def apply(network: Network) -> Edit:
        edits: dict[str, Edit] = {}
        for part in parts:
            try:
                edits[part.name] = part.apply(network)
            except RemedyError as error:
                raise RemedyError(f"{PLUS.join(names)} cannot be applied, for {part.name} cannot.\n{error}") from None
        changes: dict[str, str] = {}
        for edit in edits.values():
            for place, words in edit.changes.items():
                changes[place] = f"{changes[place]}; {words}" if place in changes else words
        return Edit(changes=changes, keeps_function=all(edit.keeps_function for edit in edits.values()))

    return Remedy(
        name=PLUS.join(names),
        title="; then ".join(part.title for part in parts),
        family=parts[0].family,
        apply=apply,
        when="One of them is not enough. " + " ".join(part.when for part in parts),
        code="\n".join(part.code for part in parts),
        paper="; ".join(part.paper for part in parts if part.paper),
        needs_batches=any(part.needs_batches for part in parts),
    )


def find_remedy(name: str, known: Mapping[str, Remedy] = REMEDIES) -> Remedy:
    """The remedy of that name, or the combination that it names with plus signs.

    Raises RemedyError for an unknown name, with those that come close.
    """
    if name in known:
        return known[name]
    parts = [part.strip() for part in name.split(PLUS)]
    if len(parts) > 1:
        return combined(*(find_remedy(part, known) for part in parts))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise RemedyError(f"no remedy named {name!r}.\n{hint}Remedies: {', '.join(known)}.")
