"""The directory of a zip file, and the content of its members as views of the file.

Stricter than Python's `zipfile`: members may not overlap, sizes and names must be consistent, nothing may follow the
end of the archive, and the compression ratio is limited. The checksum of a member is verified when it is read.
Source: PKWARE's APPNOTE.TXT, sections 4.3 to 4.5.
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
_IN_EXTRA_FIELD = 0xFFFFFFFF  # a 32-bit field whose value is in the 64-bit extra field
# Limits against decompression bombs: the ratio applies above this size. Weights compress to about 90 %.
_MAX_RATIO, _MAX_UNLIMITED = 16, 64 << 20
_BLOCK = 1 << 16


class ZipMember(NamedTuple):
    """An entry of the directory."""

    name: bytes
    header: int  # position of the local header
    stored: int  # bytes in the file
    size: int  # bytes of the content
    checksum: int
    method: int
    limit: int  # position of the next member


def read_directory(data: memoryview) -> dict[str, ZipMember]:
    """Return the members of the zip file `data`, by name. Raises WeightsError if the directory is invalid."""
    start, count, end = _locate_directory(data)
    entries, position = [], start
    for _ in range(count):
        entry, position = _entry(data, position, end, start)
        entries.append(entry)
    entries.sort(key=lambda entry: entry.header)
    limits = [*(entry.header for entry in entries), start][1:]
    members = {_decode_name(e.name): e._replace(limit=limit) for e, limit in zip(entries, limits, strict=True)}
    if position != end or len(members) != count:
        raise WeightsError("its zip directory is damaged or contains a member twice")
    inflated = sum(entry.size for entry in entries if entry.method == _DEFLATED)
    if inflated > max(_MAX_UNLIMITED, _MAX_RATIO * len(data)):
        raise WeightsError(f"it would grow from {len(data)} to {inflated} bytes, which is too much for weights")
    return members


def read_member(data: memoryview, member: ZipMember) -> memoryview:
    """Return the content of a member, as a view of the file unless it is compressed. Verifies the checksum."""
    begin = _data_position(data, member)
    view = data[begin : begin + member.stored]
    if begin + member.stored > member.limit:
        raise WeightsError(f"member {printable(member.name)} overlaps another one")
    if member.method == _DEFLATED:
        view = _inflate(view, member)
    if zlib.crc32(view) != member.checksum:
        raise WeightsError(f"member {printable(member.name)} is damaged (its checksum differs): get the file again")
    return view


def _locate_directory(data: memoryview) -> tuple[int, int, int]:
    """Return the start of the directory, its number of entries, and its end."""
    tail = bytes(data[-(_MAX_COMMENT + _END.size) :])
    position = tail.rfind(b"PK\5\6")
    if position < 0 or len(tail) - position < _END.size:
        raise WeightsError(TRUNCATED)
    end = len(data) - len(tail) + position
    _, disk, first, here, count, size, start, comment = _END.unpack_from(data, end)
    if end + _END.size + comment != len(data):
        raise WeightsError("it has data after the end of the zip archive: get the file again")
    locator = end - _END64_LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\6\7":
        _, _, end, _ = _END64_LOCATOR.unpack_from(data, locator)
        if end + _END64.size > locator:
            raise WeightsError("its zip directory is damaged: get the file again")
        magic, _, _, _, disk, first, here, count, size, start = _END64.unpack_from(data, end)
        if magic != b"PK\6\6":
            raise WeightsError("its zip directory is damaged: get the file again")
    if disk or first or here != count or start + size != end or count > _MAX_MEMBERS:
        raise WeightsError("its zip directory is damaged, or the archive has several parts: get the file again")
    return start, count, end


def _entry(data: memoryview, position: int, end: int, directory: int) -> tuple[ZipMember, int]:
    """Return the entry of the directory at `position`, and the position of the next one."""
    if position + _ENTRY.size > end:
        raise WeightsError("its zip directory is damaged: get the file again")
    fields = _ENTRY.unpack_from(data, position)
    magic, _, _, flags, method, _, _, checksum, stored, size, names, extras, comment, disk, _, _, header = fields
    begin = position + _ENTRY.size
    after = begin + names + extras + comment
    if magic != b"PK\1\2" or after > end or disk:
        raise WeightsError("its zip directory is damaged: get the file again")
    name = bytes(data[begin : begin + names])
    if _IN_EXTRA_FIELD in (stored, size, header):
        extra = bytes(data[begin + names : begin + names + extras])
        size, stored, header = _long_fields(extra, [size, stored, header])
    if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
        raise WeightsError(f"member {printable(name)} is encrypted, or its compression is not supported")
    if (method == _STORED and stored != size) or header + _LOCAL.size + names + stored > directory:
        raise WeightsError(f"member {printable(name)} does not have the declared size")
    return ZipMember(name, header, stored, size, checksum, method, 0), after


def _long_fields(extra: bytes, fields: list[int]) -> list[int]:
    """Replace the fields equal to `_IN_EXTRA_FIELD`, in order, by the 64-bit values in the extra field of type 1."""
    position = 0
    while position + 4 <= len(extra):
        field_type, length = struct.unpack_from("<2H", extra, position)
        values = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if field_type == 1:
            wanted = sum(field == _IN_EXTRA_FIELD for field in fields)
            if len(values) < 8 * wanted:
                break
            longs = iter(struct.unpack_from(f"<{wanted}Q", values))
            return [next(longs) if field == _IN_EXTRA_FIELD else field for field in fields]
    raise WeightsError("its zip directory is damaged: get the file again")


def _data_position(data: memoryview, member: ZipMember) -> int:
    """Return the position of a member's data, after its local header, which must agree with the directory."""
    if member.header + _LOCAL.size > member.limit:
        raise WeightsError(f"member {printable(member.name)} overlaps another one")
    fields = _LOCAL.unpack_from(data, member.header)
    name = member.header + _LOCAL.size
    begin = name + fields[9] + fields[10]
    if fields[0] != b"PK\3\4" or fields[3] != member.method or bytes(data[name : name + fields[9]]) != member.name:
        raise WeightsError(
            f"member {printable(member.name)} is not at the position in the directory: get the file again"
        )
    return begin


def _inflate(view: memoryview, member: ZipMember) -> memoryview:
    result, inflater = bytearray(), zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for start in range(0, len(view), _BLOCK):
            block: bytes | memoryview = view[start : start + _BLOCK]
            while len(block) and len(result) <= member.size:
                result += inflater.decompress(block, _BLOCK)
                block = inflater.unconsumed_tail
        if len(result) <= member.size:
            result += inflater.flush()  # up to a few hundred bytes may be pending
    except zlib.error:
        raise WeightsError(f"member {printable(member.name)} is damaged: get the file again") from None
    if len(result) != member.size:
        raise WeightsError(f"member {printable(member.name)} does not have the declared size")
    return memoryview(result).toreadonly()


def _decode_name(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise WeightsError(f"the name of member {printable(name)} is damaged") from None
