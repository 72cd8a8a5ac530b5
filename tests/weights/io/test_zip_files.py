"""Zip archives: those of `zipfile` are read, and invalid ones are refused."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io import zip_files

CONTENT = {"a.npy": np.random.default_rng(0).bytes(5000), "b.npy": b"", "c/d.npy": b"text " * 10_000}
END, ENTRY, LOCAL = b"PK\5\6", b"PK\1\2", b"PK\3\4"


def archive(content=CONTENT, compression=zipfile.ZIP_STORED, comment=b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as target:
        target.comment = comment
        for name, value in content.items():
            target.writestr(name, value)
    return buffer.getvalue()


def contents(data: bytes) -> dict[str, bytes]:
    view = memoryview(data)
    return {name: bytes(zip_files.read_member(view, member)) for name, member in zip_files.read_directory(view).items()}


def changed(data: bytes, record: bytes, offset: int, fields: str, *values: int, last: bool = False) -> bytes:
    """`data` with fields of its first (or last) record of a type overwritten."""
    place = (data.rfind if last else data.find)(record) + offset
    packed = struct.pack("<" + fields, *values)
    return data[:place] + packed + data[place + len(packed) :]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("comment", [b"", b"a comment", b"x" * 65535])
def test_members(compression, comment):
    assert contents(archive(compression=compression, comment=comment)) == CONTENT


def test_an_empty_archive_has_no_members():
    assert contents(archive({})) == {}


def test_stored_members_are_not_copied():
    data = memoryview(archive())
    member = zip_files.read_member(data, zip_files.read_directory(data)["a.npy"])
    assert np.shares_memory(np.frombuffer(data, np.uint8), np.frombuffer(member, np.uint8))


def test_streamed_archives_and_long_fields():
    """Sizes after the data (flag 3), and sizes in the 64-bit extra field."""

    class Unseekable(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *_):
            raise OSError

    buffer = Unseekable()
    with zipfile.ZipFile(buffer, "w") as target, target.open("a", "w", force_zip64=True) as member:
        member.write(b"123")
    assert contents(buffer.getvalue()) == {"a": b"123"}


def zip64(data: bytes, *, count: int | None = None, shift: int = 0) -> bytes:
    """The archive with 64-bit fields everywhere, as if it were larger than 4 GB."""
    end = data.rfind(END)
    total, _, start, _ = struct.unpack("<H2LH", data[end + 10 :])
    directory, position = b"", start
    while position < end:
        fields = list(struct.unpack("<4s6H3L5H2L", data[position : position + 46]))
        name = data[position + 46 : position + 46 + fields[10]]
        extra = struct.pack("<2H3Q", 1, 24, fields[9], fields[8], fields[16])
        fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
        position += 46 + fields[10] + fields[11] + fields[12]
        fields[11] = len(extra)
        directory += struct.pack("<4s6H3L5H2L", *fields) + name + extra
    total = total if count is None else count
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, total, total, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory) + shift, 1)
    return (
        data[:start]
        + directory
        + record
        + locator
        + struct.pack("<4s4H2LH", END, 0, 0, *[0xFFFF] * 2, *[2**32 - 1] * 2, 0)
    )


def test_large_archives():
    assert contents(zip64(archive())) == CONTENT
    for change in ({"count": 2}, {"count": 4}, {"count": 1 << 40}, {"shift": 1}, {"shift": -1}, {"shift": 1 << 60}):
        with pytest.raises(WeightsError, match="its zip directory is damaged"):
            contents(zip64(archive(), **change))
    with pytest.raises(WeightsError, match="its zip directory is damaged"):
        contents(zip64(archive()).replace(struct.pack("<2H", 1, 24), struct.pack("<2H", 1, 16)))


@pytest.mark.parametrize("size", [*range(65536, 65536 + 600, 20), 1 << 20])
def test_pending_output_of_the_decompressor(size):
    """Some bytes may be pending after all input is consumed."""
    content = {"w": bytes(size)}
    assert contents(archive(content, zipfile.ZIP_DEFLATED)) == content


def overlapping() -> bytes:
    """The first member ends inside the second one, with a valid checksum."""
    data, size = archive(), len(CONTENT["a.npy"]) + 10
    checksum = zlib.crc32(data[35 : 35 + size])
    return changed(data, ENTRY, 16, "3L", checksum, size, size)


STORED, DEFLATED = archive(), archive(compression=zipfile.ZIP_DEFLATED)
DIRECTORY = STORED.find(ENTRY)
INVALID = {
    "too many entries": changed(STORED, END, 8, "2H", 4, 4),
    "too few entries": changed(STORED, END, 8, "2H", 2, 2),
    "several disks": changed(STORED, END, 4, "2H", 1, 1),
    "directory size": changed(STORED, END, 12, "L", 7),
    "directory place": changed(STORED, END, 16, "L", DIRECTORY - 1),
    "comment length": changed(STORED, END, 20, "H", 3),
    "something after the end": STORED + b"!",
    "something before the beginning": b"!" + STORED,
    "encrypted": changed(STORED, ENTRY, 8, "H", 1),
    "unknown compression": changed(STORED, ENTRY, 10, "H", 12),
    "checksum": changed(STORED, ENTRY, 16, "L", 7),
    "smaller than stored": changed(STORED, ENTRY, 24, "L", 10),
    "larger than stored": changed(STORED, ENTRY, 24, "L", 2**32 - 2),
    "beyond the end": changed(STORED, ENTRY, 20, "2L", 2**31, 2**31),
    "into the next member": overlapping(),
    "long fields without an extra field": changed(STORED, ENTRY, 20, "2L", 2**32 - 1, 2**32 - 1),
    "name too long": changed(STORED, ENTRY, 28, "H", 60_000),
    "extra too long": changed(STORED, ENTRY, 30, "H", 60_000),
    "another place": changed(STORED, ENTRY, 42, "L", 1),
    "the place of another member": changed(STORED, ENTRY, 42, "L", 0, last=True),
    "a place behind the directory": changed(STORED, ENTRY, 42, "L", DIRECTORY),
    "another name in the member": STORED.replace(b"a.npy", b"x.npy", 1),
    "another compression in the member": changed(STORED, LOCAL, 8, "H", 8),
    "a long extra field in the member": changed(STORED, LOCAL, 28, "H", 60_000),
    "a name twice": STORED.replace(b"b.npy", b"a.npy"),
    "a name that is no text": STORED.replace(b"b.npy", b"\xff.npy"),
    "zeros in a member": STORED[:100] + bytes(100) + STORED[200:],
    "deflated into less": changed(DEFLATED, ENTRY, 24, "L", 49_999, last=True),
    "deflated into more": changed(DEFLATED, ENTRY, 24, "L", 50_001, last=True),
    "deflated and cut": changed(DEFLATED, ENTRY, 20, "L", 100, last=True),
    "deflated zeros": DEFLATED[:60] + bytes(100) + DEFLATED[160:],
}


@pytest.mark.parametrize("what", INVALID)
def test_invalid_archives_are_refused(what):
    with pytest.raises(WeightsError):
        contents(INVALID[what])


def test_overlapping_members_are_refused():
    with pytest.raises(WeightsError, match="overlaps another one"):
        contents(overlapping())


@pytest.mark.medium
def test_decompression_bombs_are_refused(refusal):
    """100 kB that would become 100 MB, with the true and with a false size."""
    bomb = archive({"w.npy": bytes(100 << 20)}, zipfile.ZIP_DEFLATED)
    assert "would grow" in refusal(bomb)
    assert "does not have the declared size" in refusal(changed(bomb, ENTRY, 24, "L", 1000))
    many = archive({f"{index}.npy": bytes(1 << 20) for index in range(70)}, zipfile.ZIP_DEFLATED)
    assert "would grow" in refusal(many)


def test_number_of_members_is_limited(monkeypatch):
    monkeypatch.setattr(zip_files, "_MAX_MEMBERS", 2)
    with pytest.raises(WeightsError, match="its zip directory is damaged"):
        contents(STORED)
