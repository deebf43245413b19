"""A recording kept in one SQLite file while it is made, readable at any time. No torch here."""

from __future__ import annotations

import io
import json
import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from relume.errors import JournalError
from relume.recording import Reading, Recording, from_json, to_json

VERSION = 1  # of the file's layout, in SQLite's user_version


class Journal:
    """Writes readings to `path` as they come, one commit per probe; an existing journal there is replaced.

    Raises JournalError when the file cannot be written or is something other than a journal.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists():
            _open(self.path).close()  # never overwrite what is not a journal
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute(f"PRAGMA user_version={VERSION}")
            self._file.execute("CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            self._file.execute(
                "CREATE TABLE reading (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, body BLOB NOT NULL)"
            )
            self._file.execute("CREATE TABLE loss (step INTEGER PRIMARY KEY, value REAL)")
            self._file.commit()
        except (OSError, sqlite3.Error) as error:
            raise JournalError(
                f"cannot write a journal at {self.path}: {error}.\nGive a path in a folder you can write to."
            ) from None
        self._losses = 0

    def add(self, recording: Recording, readings: Iterable[Reading]) -> None:
        """Append readings, and bring what is known of the run up to date."""
        losses = recording.losses
        head = to_json(replace(recording, readings=(), losses=()))  # all that was read before is in the file already
        del head["readings"], head["losses"]
        with self._file:
            self._file.executemany(
                "INSERT INTO reading (step, body) VALUES (?, ?)", [(r.step, _pack(to_json(r))) for r in readings]
            )
            self._file.executemany(
                "INSERT OR REPLACE INTO loss VALUES (?, ?)",
                [(step, str(losses[step])) for step in range(self._losses, len(losses))],
            )
            self._file.execute("INSERT OR REPLACE INTO run VALUES ('head', ?)", (json.dumps(head),))
        self._losses = len(losses)

    def close(self) -> None:
        """Fold the write-ahead log into the one file."""
        self._file.close()


def read_journal(path: str | Path) -> Recording:
    """The recording kept at `path`: finished, crashed or still being written.

    Raises JournalError when there is no journal at `path`, or nothing was read yet.
    """
    path = Path(path)
    if not path.is_file():
        raise JournalError(
            f"no journal at {path}: there is no such file.\nMake one with relume.watch(..., journal={str(path)!r})."
        )
    file = _open(path)
    try:
        head = file.execute("SELECT value FROM run WHERE key = 'head'").fetchone()
        bodies = [_unpack(body) for (body,) in file.execute("SELECT body FROM reading ORDER BY id")]
        losses = [value for (value,) in file.execute("SELECT value FROM loss ORDER BY step")]
    except (sqlite3.Error, zlib.error, ValueError) as error:
        raise JournalError(f"the journal at {path} cannot be read: {error}.") from None
    finally:
        file.close()
    if head is None:
        raise JournalError(f"the journal at {path} holds no reading yet: the run stopped before its first step ended.")
    try:
        return from_json({**json.loads(head[0]), "readings": bodies, "losses": losses}, Recording)
    except Exception as error:  # whatever the converter makes of a value that is not as it was written
        raise JournalError(f"the journal at {path} is damaged: {type(error).__name__}: {error}.") from None


def _open(path: Path) -> sqlite3.Connection:
    try:
        file = sqlite3.connect(path)
        version = file.execute("PRAGMA user_version").fetchone()[0]
        tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise JournalError(f"{path} is not a relume journal: {error}.") from None
    if not {"run", "reading", "loss"} <= tables or version != VERSION:
        file.close()
        raise JournalError(f"{path} is not a relume journal of layout {VERSION}; nothing was changed.")
    return file


def _pack(values: Any) -> bytes:
    return zlib.compress(json.dumps(values, separators=(",", ":")).encode(), level=1)


def _unpack(body: bytes) -> Any:
    return json.load(io.BytesIO(zlib.decompress(body)))
