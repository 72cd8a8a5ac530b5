"""The .npz format: arrays of every number format are read, and invalid headers are refused."""

from __future__ import annotations

import io
import os
import zipfile

import numpy as np
import pytest

ARRAYS = {
    **{kind: np.arange(6).reshape(2, 3).astype(kind) for kind in ("f2", "f4", "f8", "i1", "i8", "u2", "?", ">f4")},
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "0-d": np.array(2.5),
    "empty": np.zeros((0, 4)),
    "a.name/with.dots": np.ones(3),
}


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in members.items():
            target.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def array(header: str, data: bytes = bytes(24), version: bytes = b"\1\0") -> bytes:
    length = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + length + header.encode() + data


def header(descr="'<f4'", fortran="False", shape="(2, 3)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_every_format(read_watched, save):
    buffer = io.BytesIO()
    save(buffer, **ARRAYS)
    loaded = read_watched(buffer.getvalue())
    assert list(loaded) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], expected)
        assert loaded[name].dtype == expected.dtype.newbyteorder("=")
        assert loaded[name].flags.aligned
        assert not loaded[name].flags.writeable


@pytest.mark.filterwarnings("ignore:.*created on Python 2")
@pytest.mark.parametrize(
    ("version", "shape"), [(b"\1\0", "(2L, 3L)"), *((version, "(2, 3)") for version in (b"\1\0", b"\2\0", b"\3\0"))]
)
def test_headers_of_every_version(read_watched, version, shape):
    loaded = read_watched(archive(w=array(header(shape=shape), version=version)))["w"]
    np.testing.assert_array_equal(loaded, np.zeros((2, 3), np.float32), strict=True)


def test_decompression_bombs_are_refused(refusal):
    """100 kB that would become 100 MB, with the true and with a false size."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("w.npy", bytes(100 << 20))
    bomb = buffer.getvalue()
    assert "would grow" in refusal(bomb)
    size = bomb.find(b"PK\1\2") + 24
    assert "get the file again" in refusal(bomb[:size] + (1000).to_bytes(4, "little") + bomb[size + 4 :])


def test_objects_are_refused(refusal, tmp_path):
    class Call:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'canary'}",)

    buffer = io.BytesIO()
    np.savez(buffer, w=np.ones(3), x=np.array([Call()], dtype=object))
    assert "other than plain arrays" in refusal(buffer.getvalue())
    assert not (tmp_path / "canary").exists()


INVALID = {
    "data too short": array(header(), bytes(20)),
    "data too long": array(header(), bytes(28)),
    "half a number": array(header(), bytes(23)),
    "a larger shape": array(header(shape="(200, 300)")),
    "more digits than any size": array(header(shape="(" + "9" * 5000 + ",)")),
    "a negative shape": array(header(shape="(-2, -3)")),
    "nested": array(header(shape="(" * 3000)),
    "code": array(header(shape="__import__('os').system('true')")),
    "text": array(header(descr="'<U2'")),
    "long double": array(header(descr="'<f16'")),
    "complex": array(header(descr="'<c8'")),
    "records": array(header(descr="[('a', '<f4')]")),
    "objects": array(header(descr="'|O8'")),
    "pickled objects": array(header(descr="'|O'"), b"\x80\4cos\nsystem\n"),
    "no header": b"\x93NUMPY\1\0",
    "no magic": b"\x93NUMPX" + array(header())[6:],
    "unknown version": array(header(), version=b"\4\0"),
    "a header beyond the end": array(header())[:8] + b"\xff\xff" + array(header())[10:],
    "nothing": b"",
}


@pytest.mark.parametrize("what", INVALID)
def test_invalid_arrays_are_refused(refusal, what):
    refusal(archive(w=INVALID[what]))
