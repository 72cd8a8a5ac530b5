"""The .safetensors format: compatible with the safetensors package; invalid headers are refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from mrcnn_jax.weights.io import weight_files

KINDS = ("f2", "f4", "f8", "i4", "i8", "u1", "u4", "?", ">f4")
ARRAYS = {
    "one byte": np.array([1, 2, 3], np.int8),  # an odd length: tensors after it would not be aligned
    **{
        kind: np.arange(6).reshape(2, 3).astype(kind) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "u4", "?", ">f4")
    },
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "0-d": np.array(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}
FLOATS = np.arange(4, dtype="<f4").tobytes()


def handmade(data: bytes = FLOATS, **tensors: object) -> bytes:
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(start: object = 0, end: object = 16, shape: object = (4,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_round_trip(tmp_path):
    path = tmp_path / "weights.safetensors"
    weight_files.write(path, ARRAYS)
    loaded = weight_files.read(path)
    assert set(loaded) == set(ARRAYS)
    for name, expected in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], expected)
        assert loaded[name].dtype == expected.dtype.newbyteorder("=")
        assert loaded[name].flags.aligned
        assert not loaded[name].flags.writeable


def test_files_of_the_package(read_watched):
    state = {name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}
    loaded = read_watched(safetensors.numpy.save(state, metadata={"format": "np"}))
    for name, expected in state.items():
        np.testing.assert_array_equal(loaded[name], expected)


def test_bfloat16_and_bools(read_watched):
    bits = np.array([0x3F80, 0xC000, 0x7F80, 0x0001], "<u2")
    loaded = read_watched(handmade(bits.tobytes(), w=entry(end=8, dtype="BF16")))["w"]
    np.testing.assert_array_equal(loaded, np.array([1, -2, np.inf, 2.0**-133], np.float32), strict=True)
    loaded = read_watched(handmade(b"\xff\0\2\1", w=entry(end=4, dtype="BOOL")))["w"]
    np.testing.assert_array_equal(loaded.view(np.uint8), [1, 0, 1, 1])


def test_metadata_is_not_a_tensor(read_watched):
    assert list(read_watched(handmade(w=entry(), __metadata__={"format": "pt"}))) == ["w"]


INVALID = {
    "data too short": handmade(FLOATS[:12], w=entry()),
    "data too long": handmade(FLOATS + b"!", w=entry()),
    "shape too large": handmade(w=entry(shape=[5])),
    "shape too small": handmade(w=entry(shape=[3])),
    "huge shape": handmade(w=entry(shape=[1 << 62])),
    "huge shape and empty": handmade(b"", w=entry(0, 0, shape=[0, 1 << 62])),
    "negative shape": handmade(w=entry(shape=[-2, -2])),
    "shape of text": handmade(w=entry(shape="4")),
    "shape of floats": handmade(w=entry(shape=[4.0])),
    "overlap": handmade(a=entry(), b=entry()),
    "hole": handmade(a=entry(0, 4, [1]), b=entry(8, 16, [2])),
    "begins late": handmade(w=entry(4, 16, [3])),
    "ends before it begins": handmade(w=entry(16, 0)),
    "negative place": handmade(w=entry(-16, 0)),
    "place of text": handmade(w=entry("0", "16")),
    "place of bools": handmade(w=entry(False, True)),
    "place in three parts": handmade(w={**entry(), "data_offsets": [0, 8, 16]}),
    "no place": handmade(w={"dtype": "F32", "shape": [4]}),
    "no dtype": handmade(w={"shape": [4], "data_offsets": [0, 16]}),
    "unknown dtype": handmade(w=entry(dtype="F8_E4M3", shape=[16])),
    "dtype in a list": handmade(w=entry(dtype=["F32"])),
    "no description": handmade(w=None),
    "no JSON": struct.pack("<Q", 8) + b"{broken}" + FLOATS,
    "JSON that is not text": struct.pack("<Q", 8) + b"{\xff\xff\xff\xff\xff\xff}" + FLOATS,
    "deep JSON": struct.pack("<Q", 200_005) + b'{"w":' + b"[" * 200_000 + FLOATS,
    "a header beyond the end": struct.pack("<Q", 1000) + b"{}" + FLOATS,
    "a long header": struct.pack("<Q", 1 << 40) + b"{}" + FLOATS,
}


@pytest.mark.parametrize("what", INVALID)
def test_invalid_headers_are_refused(refusal, what):
    refusal(INVALID[what])


def test_valid_handmade_file(read_watched):
    np.testing.assert_array_equal(read_watched(handmade(w=entry(), v=entry(16, 16, [0])))["w"], np.arange(4.0))
