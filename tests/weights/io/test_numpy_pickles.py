"""Pickled arrays: those of every protocol are read, and invalid ones are refused."""

from __future__ import annotations

import argparse
import collections
import pickle
import struct

import numpy as np
import pytest

from mrcnn_jax.weights.io.pickles import ALLOWED

DTYPE = b"cnumpy\ndtype\n\x8c\2f4\x89\x88\x87R"
EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R"
EIGHT_BYTES = b"C\x08" + bytes(8)


def pickled(body: bytes) -> bytes:
    return b"\x80\4" + body + b"."


def array(state: bytes) -> bytes:
    """A pickle of an array with the given state."""
    return pickled(EMPTY_ARRAY + state + b"b")


def state(shape: bytes, data: bytes = EIGHT_BYTES, fortran: bytes = b"\x89", version: bytes = b"K\1") -> bytes:
    return b"(" + version + shape + DTYPE + fortran + data + b"t"


def test_valid_array(read_watched):
    np.testing.assert_array_equal(read_watched(array(state(b"K\2\x85"))), np.zeros(2, np.float32))


HUGE = b"\x8a\x08" + struct.pack("<q", 1 << 62)
ARRAYS = {
    "data too short": state(b"K\3\x85"),
    "data too long": state(b"K\1\x85"),
    "half a number": state(b"K\2\x85", b"C\7" + bytes(7)),
    "huge": state(HUGE + b"\x85"),
    "huge, so that the product is small": state(HUGE + b"K\4\x86"),
    "huge and empty": state(b"K\0" + HUGE + b"\x86", b"C\0"),
    "astronomic": state(b"\x8a\xff" + b"\x7f" * 255 + b"\x85"),
    "negative": state(b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86"),
    "bool in the shape": state(b"\x88K\2\x86"),
    "float in the shape": state(b"G@\0\0\0\0\0\0\0\x85"),
    "too many axes": state(b"(" + b"K\1" * 80 + b"K\2t"),
    "text beyond bytes as data": state(b"K\2\x85", b"\x8c\2" + "\u0100".encode()),
    "objects as data": state(b"K\2\x85", b"]N\x85a"),
    "nothing as data": state(b"K\2\x85", b"N"),
    "another array as data": state(b"K\2\x85", EMPTY_ARRAY),
    "no dtype": b"(K\1K\2\x85\x8c\2f4\x89" + EIGHT_BYTES + b"t",
    "state in a list": b"]",
    "too few parts": b"K\1\x85",
}


@pytest.mark.parametrize("what", ARRAYS)
def test_invalid_arrays_are_refused(refusal, what):
    refusal(array(ARRAYS[what]))


BUFFERS = {
    "order": b"K\2\x85\x8c\1Xt",
    "axes": b"K\2\x85\x8c\1KK\1\x85t",
    "axes twice": b"K\1K\2\x86\x8c\1KK\0K\0\x86t",
    "axes that are not numbers": b"K\2\x85\x8c\1K\x89\x85t",
    "shape": b"K\3\x85\x8c\1Ct",
}


@pytest.mark.parametrize("what", BUFFERS)
def test_invalid_buffers_are_refused(refusal, what):
    refusal(pickled(b"cnumpy._core.numeric\n_frombuffer\n(" + EIGHT_BYTES + DTYPE + BUFFERS[what] + b"R"))


def test_arrays_without_data_and_odd_scalars_are_refused(refusal):
    refusal(pickled(EMPTY_ARRAY))
    assert "8 bytes" in refusal(pickled(b"cnumpy.core.multiarray\nscalar\n" + DTYPE + EIGHT_BYTES + b"\x86R"))


DTYPES = {
    "objects": b"cnumpy\ndtype\n\x8c\2O8\x89\x88\x87R",
    "records": DTYPE + b"(K\3\x8c\1<N\x8c\1a\x85}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb",
    "subarrays": DTYPE + b"(K\3\x8c\1<" + DTYPE + b"NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb",
    "an unknown byte order": DTYPE + b"(K\3\x8c\1!NNNtb",
    "text": b"cnumpy\ndtype\n\x8c\2U2\x89\x88\x87R",
    "many at once": b"cnumpy\ndtype\n\x8c\x0d999999999f4,O\x89\x88\x87R",
    "a number for a name": b"cnumpy\ndtype\nK\4\x89\x88\x87R",
    "a state in a list": DTYPE + b"]b",
}


@pytest.mark.parametrize("what", DTYPES)
def test_arrays_of_other_things_are_refused(refusal, what):
    refusal(array(b"(K\1K\2\x85" + DTYPES[what] + b"\x89" + EIGHT_BYTES + b"t"))


def test_allowed_globals():
    """Before adding a name, consider what a malicious file could do with it."""
    assert sorted(ALLOWED) == [
        "__builtin__.bytes",
        "_codecs.encode",
        "argparse.Namespace",
        "collections.Counter",
        "collections.OrderedDict",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.numeric._frombuffer",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.core.numeric._frombuffer",
        "numpy.dtype",
        "numpy.ndarray",
    ]


NUMBERS = np.arange(24).reshape(2, 3, 4)
PICKLED = {
    **{f"{kind}{size}": NUMBERS.astype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)},
    **{f"f{size}": NUMBERS.astype(f"f{size}") for size in (2, 4, 8)},
    "bool": NUMBERS % 3 == 0,
    "big-endian": NUMBERS.astype(">f4"),
    "columns first": np.asfortranarray(NUMBERS[0]),
    "other order of axes": NUMBERS.transpose(1, 0, 2),
    "every second": NUMBERS[:, ::2],
    "0-d": np.array(3.5),
    "empty": np.zeros((0, 3), np.float32),
    "one byte": np.zeros(1, np.uint8),
    "one bool": np.zeros(1, bool),
    "long": np.random.default_rng(0).standard_normal(5000).astype(np.float32),
    "scalar": np.float32(0.1),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", PICKLED)
def test_arrays_of_every_kind(read_watched, name, protocol):
    expected = PICKLED[name]
    loaded = read_watched(pickle.dumps({"model": {name: expected, "again": expected}}, protocol))["model"]
    assert loaded[name].dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(loaded[name], expected, strict=name != "big-endian")
    if isinstance(expected, np.ndarray):
        assert loaded[name].flags.aligned
        assert not loaded[name].flags.writeable
        assert loaded["again"] is loaded[name]


PLAIN = {
    "__author__": "torchvision",
    "text": "t\u00e9xt" * 1000,
    "bytes": b"\xff\0" * 1000,
    "numbers": [0, -1, 255, 70_000, -(1 << 40), 1 << 200, 0.1, True, False, None],
    "nested": [{"a": (1, (), [], {})}, {1: 2, -7: "x"}],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values(read_watched, protocol):
    """Bytes become text, which Python 2 writes as bytes."""
    loaded = read_watched(pickle.dumps(PLAIN, protocol))
    assert loaded == {**PLAIN, "bytes": PLAIN["bytes"].decode("latin-1")}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_in_training_checkpoints(read_watched, protocol):
    content = {
        "args": argparse.Namespace(lr=0.02, data=["a"]),
        "milestones": collections.Counter([16, 22]),
        "order": collections.OrderedDict(b=1, a=2),
    }
    loaded = read_watched(pickle.dumps(content, protocol))
    assert loaded == {"args": {"lr": 0.02, "data": ["a"]}, "milestones": {16: 1, 22: 1}, "order": {"b": 1, "a": 2}}
    assert {type(value) for value in loaded.values()} == {dict}
    assert list(loaded["order"]) == ["b", "a"]


def python2_string(data: bytes) -> bytes:
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data


def python2_array(values: np.ndarray) -> bytes:
    """An array as Python 2's cPickle writes it with protocol 2: text for bytes, numbers for bools."""
    shape = b"(" + b"".join(b"M" + struct.pack("<H", size) for size in values.shape) + b"t"
    kind = b"cnumpy\ndtype\n" + python2_string(values.dtype.str[1:].encode()) + b"K\0K\1\x87R"
    kind += b"(K\3U\1<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    begin = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
    return begin + b"(K\1" + shape + kind + b"K\0" + python2_string(values.tobytes()) + b"tb"


def test_files_of_python_2(read_watched):
    """As in files of Detectron and MSRA: short and long data, a long text, an OrderedDict of pairs."""
    short, long = np.arange(7, dtype=np.float32), np.arange(3000, dtype=np.float64).reshape(50, 60)
    config = "MODEL: caf\u00e9\n" * 200
    items = [
        python2_string(b"conv1_w") + python2_array(long),
        python2_string(b"conv1_b") + python2_array(short),
        python2_string(b"cfg") + python2_string(config.encode("latin-1")),
        python2_string(b"order") + b"ccollections\nOrderedDict\n](](U\1aK\1e](U\1bK\2ee\x85R",
    ]
    loaded = read_watched(b"\x80\2}(" + b"".join(items) + b"u.")
    np.testing.assert_array_equal(loaded.pop("conv1_w"), long, strict=True)
    np.testing.assert_array_equal(loaded.pop("conv1_b"), short, strict=True)
    assert loaded == {"cfg": config, "order": {"a": 1, "b": 2}}
    assert pickle.loads(b"\x80\2}(" + b"".join(items) + b"u.", encoding="latin1")["cfg"] == config


def test_bools_are_0_or_1(read_watched):
    """NumPy gives wrong results for bools with other bytes."""
    content = pickle.dumps(np.array([True, False, True, True]), 4).replace(b"\1\0\1\1", b"\xff\0\2\1")
    loaded = read_watched(content)
    assert np.count_nonzero(loaded) == 3
    np.testing.assert_array_equal(loaded.view(np.uint8), [1, 0, 1, 1])
