"""
Events as a file for somebody else: a table (CSV), JSON, or both with the pictures (zip).

Everything is written as it is read, so that a year of events needs no memory; where it goes need
not be able to seek, as a browser's connection is not.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from edge_app.errors import InputError
from edge_app.event_rows import Row

KINDS = ("csv", "json", "zip")
# Text of an archive that waits in memory until the pictures are through; more goes to a file.
MOST_TEXT_BYTES = 4_000_000
# A spreadsheet takes text that begins with one of these for a formula, and runs it.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
# The dates that a zip file can hold.
FIRST_YEAR, LAST_YEAR = 1980, 2107

CSV_COLUMNS = (
    "id",
    "time",
    "kind",
    "verdict",
    "part",
    "score",
    "threshold",
    "reason",
    "detail",
    "mark",
    "ended",
    "frames",
    "frame",
    "overlay",
    "bundle_sha256",
    "episode",
    "boot_id",
    "boot_s",
    "data",
)

PictureOf = Callable[[Row, str], Path | None]


def export(
    rows: Iterable[Row], target: Path | str | IO[bytes], kind: str, picture_of: PictureOf
) -> int:
    """
    Write events.

    Parameters
    ----------
    rows : iterable of Row
        Read once.
    target : path or binary file
        A file of this name is replaced when all is written, and left as it is if that fails.
    kind : {'csv', 'json', 'zip'}
        The zip holds ``events.csv``, ``events.json`` and ``pictures/``; in it `frame` and
        `overlay` name files of ``pictures/``, elsewhere files of the store.
    picture_of : callable
        `EventReader.picture_of`.

    Returns
    -------
    int
        How many events were written.

    Raises
    ------
    InputError
        If a path cannot be written. What a file raises is passed on.
    """
    if kind not in KINDS:
        raise InputError(f"format is {kind!r}, wanted one of {', '.join(KINDS)}")
    if not isinstance(target, str | os.PathLike):
        return _write(rows, target, kind, picture_of)
    path = Path(target)
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, wanted the name of a file")
        if path.exists() and not path.is_file():
            # A device or a pipe is written to; a file in its place would be a bad surprise.
            with open(path, "wb") as file:
                return _write(rows, file, kind, picture_of)
        real = Path(os.path.realpath(path))  # a link stays one
        temporary = real.with_name(f".{real.name}.{os.getpid()}.part")
        real.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                count = _write(rows, file, kind, picture_of)
            os.replace(temporary, real)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return count


def _write(rows: Iterable[Row], file: IO[bytes], kind: str, picture_of: PictureOf) -> int:
    if kind == "zip":
        return _zip(rows, file, picture_of)
    lines = _csv_lines if kind == "csv" else _json_lines
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    for line in lines(counted()):
        file.write(line)
    return count


def _csv_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    yield _csv_line(CSV_COLUMNS)
    for row in rows:
        fields = row.as_json()
        fields["data"] = json.dumps(fields["data"], ensure_ascii=False) if fields["data"] else ""
        yield _csv_line(_cell(fields[column]) for column in CSV_COLUMNS)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(FORMULA_SIGNS):
        return "'" + value
    return "" if value is None else value


def _csv_line(cells: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()


def _json_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    """One array, one event a line."""
    before = b"[\n"
    for row in rows:
        yield before + _json_line(row)
        before = b",\n"
    yield b"\n]\n" if before == b",\n" else b"[]\n"


def _json_line(row: Row) -> bytes:
    return json.dumps(row.as_json(), ensure_ascii=False, allow_nan=False).encode()


def _zip(rows: Iterable[Row], file: IO[bytes], picture_of: PictureOf) -> int:
    count = 0
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        tempfile.SpooledTemporaryFile(MOST_TEXT_BYTES) as table,
        tempfile.SpooledTemporaryFile(MOST_TEXT_BYTES) as objects,
    ):
        # An archive takes one member at a time: the pictures first, the texts when all is known.
        table.write(_csv_line(CSV_COLUMNS))
        objects.write(b"[")
        for row in rows:
            row = replace(
                row,
                frame=_pack(archive, row, "frame", picture_of),
                overlay=_pack(archive, row, "overlay", picture_of),
            )
            for line in list(_csv_lines([row]))[1:]:
                table.write(line)
            objects.write((b",\n" if count else b"\n") + _json_line(row))
            count += 1
        objects.write(b"\n]\n")
        for name, text in (("events.csv", table), ("events.json", objects)):
            text.seek(0)
            with archive.open(_member(name, None), "w", force_zip64=True) as member:
                while block := text.read(1 << 16):
                    member.write(block)
    return count


def _pack(archive: zipfile.ZipFile, row: Row, which: str, picture_of: PictureOf) -> str | None:
    """Put a picture into the archive; None where there is none, or no longer."""
    path = picture_of(row, which)
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None  # dropped just now
    name = f"{row.id:06d}_{which}{path.suffix}"
    # A PNG or JPEG gets no smaller.
    archive.writestr(_member(f"pictures/{name}", row.time_s, zipfile.ZIP_STORED), data)
    return name


def _member(name: str, time_s: float | None, how: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    if time_s is not None:
        try:
            moment = datetime.fromtimestamp(time_s, UTC)
        except (ValueError, OverflowError, OSError):
            moment = datetime(FIRST_YEAR, 1, 1)
        if FIRST_YEAR <= moment.year <= LAST_YEAR:
            info.date_time = moment.timetuple()[:6]
    info.compress_type = how
    info.external_attr = 0o644 << 16
    return info
