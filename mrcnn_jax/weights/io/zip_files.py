"""The table of contents of a zip file, and its members where they lie.

Stricter than Python's `zipfile`: no two members may share bytes, sizes and names must agree wherever they are written,
nothing may stand outside, and what is compressed may not grow without measure. Every member's checksum is verified.
Facts: PKWARE's APPNOTE.TXT, sections 4.3 to 4.5.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.messages import TRUNCATED, printable

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 65535
_MAX_MEMBERS = 100_000
_ENCRYPTED = 1
_STORED, _DEFLATED = 0, 8
_FULL = 0xFFFFFFFF  # a 32-bit field whose value stands in the 64-bit extra field
# Weights shrink to about nine tenths when compressed. What grows more than this, and beyond this size, is a trap.
_MAX_GROWTH, _MAX_SMALL = 16, 64 << 20
_BLOCK = 1 << 16


class ZipMember(NamedTuple):
    name: bytes
    header: int  # where its local header begins
    stored: int  # bytes in the file
    size: int  # bytes of its content
    checksum: int
    method: int
    limit: int  # where the next member begins


def read_directory(data: memoryview) -> dict[str, ZipMember]:
    """By name, every member of the zip file `data`. Raises WeightsError where the table of contents is not sound."""
    start, count, end = _directory(data)
    entries, position = [], start
    for _ in range(count):
        entry, position = _entry(data, position, end, start)
        entries.append(entry)
    entries.sort(key=lambda entry: entry.header)
    limits = [*(entry.header for entry in entries), start][1:]
    found = {_text(e.name): e._replace(limit=limit) for e, limit in zip(entries, limits, strict=True)}
    if position != end or len(found) != count:
        raise WeightsError("its table of contents is damaged or names a member twice")
    inflated = sum(entry.size for entry in entries if entry.method == _DEFLATED)
    if inflated > max(_MAX_SMALL, _MAX_GROWTH * len(data)):
        raise WeightsError(f"it would grow from {len(data)} to {inflated} bytes, as no weights do")
    return found


def read_member(data: memoryview, member: ZipMember) -> memoryview:
    """The bytes of a member: a window on the file unless it is compressed."""
    begin = _begin(data, member)
    view = data[begin : begin + member.stored]
    if begin + member.stored > member.limit:
        raise WeightsError(f"member {printable(member.name)} runs into another one")
    if member.method == _DEFLATED:
        view = _inflated(view, member)
    if zlib.crc32(view) != member.checksum:
        raise WeightsError(f"member {printable(member.name)} is damaged (its checksum differs): get the file again")
    return view


def _directory(data: memoryview) -> tuple[int, int, int]:
    """Where the table of contents begins, its number of entries, and where it ends."""
    tail = bytes(data[-(_MAX_COMMENT + _END.size) :])
    place = tail.rfind(b"PK\5\6")
    if place < 0 or len(tail) - place < _END.size:
        raise WeightsError(TRUNCATED)
    end = len(data) - len(tail) + place
    _, disk, first, here, count, size, start, comment = _END.unpack_from(data, end)
    if end + _END.size + comment != len(data):
        raise WeightsError("something follows the end of its zip archive: get the file again")
    locator = end - _END64_LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\6\7":
        _, _, end, _ = _END64_LOCATOR.unpack_from(data, locator)
        if end + _END64.size > locator:
            raise WeightsError("its table of contents is damaged: get the file again")
        magic, _, _, _, disk, first, here, count, size, start = _END64.unpack_from(data, end)
        if magic != b"PK\6\6":
            raise WeightsError("its table of contents is damaged: get the file again")
    if disk or first or here != count or start + size != end or count > _MAX_MEMBERS:
        raise WeightsError("its table of contents is damaged, or the archive has several parts: get the file again")
    return start, count, end


def _entry(data: memoryview, position: int, end: int, directory: int) -> tuple[ZipMember, int]:
    """The entry at `position` of the table of contents, and where the next one begins."""
    if position + _ENTRY.size > end:
        raise WeightsError("its table of contents is damaged: get the file again")
    fields = _ENTRY.unpack_from(data, position)
    magic, _, _, flags, method, _, _, checksum, stored, size, names, extras, comment, disk, _, _, header = fields
    begin = position + _ENTRY.size
    after = begin + names + extras + comment
    if magic != b"PK\1\2" or after > end or disk:
        raise WeightsError("its table of contents is damaged: get the file again")
    name = bytes(data[begin : begin + names])
    if _FULL in (stored, size, header):
        extra = bytes(data[begin + names : begin + names + extras])
        size, stored, header = _long_fields(extra, [size, stored, header])
    if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
        raise WeightsError(f"member {printable(name)} is encrypted, or compressed in a way that is not read")
    if (method == _STORED and stored != size) or header + _LOCAL.size + names + stored > directory:
        raise WeightsError(f"member {printable(name)} does not have the size that it claims")
    return ZipMember(name, header, stored, size, checksum, method, 0), after


def _long_fields(extra: bytes, fields: list[int]) -> list[int]:
    """`fields` with the full ones replaced, in order, by the 64-bit values in the extra field of kind 1."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        values = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if kind == 1:
            wanted = sum(field == _FULL for field in fields)
            if len(values) < 8 * wanted:
                break
            longs = iter(struct.unpack_from(f"<{wanted}Q", values))
            return [next(longs) if field == _FULL else field for field in fields]
    raise WeightsError("its table of contents is damaged: get the file again")


def _begin(data: memoryview, member: ZipMember) -> int:
    """Where a member's bytes begin, after its local header, which must agree with the table of contents."""
    if member.header + _LOCAL.size > member.limit:
        raise WeightsError(f"member {printable(member.name)} runs into another one")
    fields = _LOCAL.unpack_from(data, member.header)
    name = member.header + _LOCAL.size
    begin = name + fields[9] + fields[10]
    if fields[0] != b"PK\3\4" or fields[3] != member.method or bytes(data[name : name + fields[9]]) != member.name:
        raise WeightsError(
            f"member {printable(member.name)} is not where the table of contents says: get the file again"
        )
    return begin


def _inflated(view: memoryview, member: ZipMember) -> memoryview:
    result, inflater = bytearray(), zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for start in range(0, len(view), _BLOCK):
            block: bytes | memoryview = view[start : start + _BLOCK]
            while len(block) and len(result) <= member.size:
                result += inflater.decompress(block, _BLOCK)
                block = inflater.unconsumed_tail
        if len(result) <= member.size:
            result += inflater.flush()  # the rest of the last repetition, a few hundred bytes
    except zlib.error:
        raise WeightsError(f"member {printable(member.name)} is damaged: get the file again") from None
    if len(result) != member.size:
        raise WeightsError(f"member {printable(member.name)} does not have the size that it claims")
    return memoryview(result).toreadonly()


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise WeightsError(f"the name of member {printable(name)} is damaged") from None
