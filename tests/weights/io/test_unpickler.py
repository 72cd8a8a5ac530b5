"""Malicious and damaged pickles: refused with a reason, without executing anything."""

from __future__ import annotations

import builtins
import collections
import copyreg
import operator
import os
import pickle
import pickletools
import struct
import subprocess

import numpy as np
import pytest

from mrcnn_jax.weights.io import unpickler
from mrcnn_jax.weights.io.constructors import Constructor
from mrcnn_jax.weights.io.numpy_pickles import ALLOWED_GLOBALS

DTYPE = b"cnumpy\ndtype\n\x8c\2f4\x89\x88\x87R"
EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R"
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def pickled(body: bytes) -> bytes:
    return b"\x80\4" + body + b"."


class Calls:
    """Pickled as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


# By the name in the message. "CANARY" is replaced by the path of a file that must not be created.
HARMFUL = {
    "posix.system": (os.system, "touch CANARY"),
    "eval": (eval, "open('CANARY', 'w')"),
    "exec": (exec, "open('CANARY', 'w')"),
    "open": (open, "CANARY", "w"),
    "getattr": (getattr, "text", "upper"),
    "__import__": (builtins.__import__, "antigravity"),
    "subprocess.getoutput": (subprocess.getoutput, "touch CANARY"),
    "operator.attrgetter": (operator.attrgetter, "system"),
    "numpy.load": (np.load, "CANARY", None, True),
    "set": (set, [1]),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", HARMFUL)
def test_calls_are_refused_by_name(refusal, tmp_path, name, protocol):
    canary = tmp_path / "canary"
    function, *arguments = HARMFUL[name]
    arguments = [part.replace("CANARY", str(canary)) if isinstance(part, str) else part for part in arguments]
    message = refusal(pickle.dumps({"model": {"w": np.ones(3), "x": [Calls(function, *arguments)]}}, protocol))
    assert f"{name.rpartition('.')[2]}'" in message  # protocol 2 uses Python 2's module names
    assert "nothing of it was run" in message
    assert not canary.exists()


HIDING_PLACES = {
    "value": lambda call: collections.OrderedDict(a=call),
    "depth": lambda call: {"a": [({"b": call},)]},
    "pairs": lambda call: Calls(collections.OrderedDict, [("a", call)]),
    "argument": lambda call: Calls(collections.OrderedDict, Calls(list, call)),
    "counts": lambda call: Calls(collections.Counter, {"a": call}),
    "dtype": lambda call: Calls(np.dtype, call),
    "objects": lambda call: np.array([call], dtype=object),
    "key": lambda call: Calls(collections.OrderedDict, [(call, 1)]),
    "state": lambda call: collections.UserDict(a=call),
    "reducer": lambda call: Calls(Calls, Calls, call),
}


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_hidden_calls_are_refused(refusal, tmp_path, place):
    canary = tmp_path / "canary"
    for protocol in (2, 4, 5):
        content = pickle.dumps(HIDING_PLACES[place](Calls(os.system, f"touch {canary}")), protocol)
        assert "refers to" in refusal(content)
    assert not canary.exists()


def test_every_other_opcode_is_refused_by_name(refusal):
    """Among them those that call, create objects, or use the extension registry, persistent ids or buffers."""
    known = {bytes([opcode]) for opcode in unpickler._OPERATIONS} | {b"."}
    others = [op for op in pickletools.opcodes if op.code.encode("latin-1") not in known]
    refused = {op.name for op in others}
    assert refused >= {
        "INST",
        "OBJ",
        "EXT1",
        "EXT2",
        "EXT4",
        "NEWOBJ_EX",
        "PERSID",
        "NEXT_BUFFER",
        "LONG4",
        "DUP",
        "POP",
    }
    for op in others:
        assert f"uses {op.name}," in refusal(pickled(b"(" + op.code.encode("latin-1") + b"os\nsystem\n" + bytes(8)))


def test_registered_extensions_are_refused(refusal):
    copyreg.add_extension("posix", "system", 240)
    try:
        assert "EXT1" in refusal(pickled(b"\x82\xf0\x8c\4true\x85R"))
    finally:
        copyreg.remove_extension("posix", "system", 240)


@pytest.mark.parametrize("name", ["os\nsystem", "collections\nOrderedDict.__class__", "numpy\nndarray.tofile", "\n"])
def test_names_of_global_and_stack_global(refusal, name):
    assert "refers to" in refusal(pickled(b"c" + name.encode() + b"\n)R"))
    parts = [b"\x8c" + bytes([len(part)]) + part.encode() for part in name.split("\n")]
    assert "refers to" in refusal(pickled(b"".join(parts) + b"\x93)R"))


def test_control_characters_in_names_are_escaped(refusal):
    message = refusal(pickled(b"c\x1b[2Jos\nsystem\x07\n"))
    assert r"\x1b[2Jos.system\x07" in message


INVALID_CALLS = {
    "text": b"\x8c\2os)R",
    "number": b"K\1)R",
    "array name": b"cnumpy\nndarray\n)R",
    "NEWOBJ of a dictionary": b"})\x81",
    "result of a call": DTYPE + b")R",
    "arguments in a list": b"ccollections\nOrderedDict\n]R",
    "too many arguments": b"ccollections\nCounter\n}}\x86R",
    "a name as a value": b"ccollections\nOrderedDict\n",
    "an OrderedDict of a dictionary": b"ccollections\nOrderedDict\n}\x85R",
    "an OrderedDict of no pairs": b"ccollections\nOrderedDict\n]K\1a\x85R",
    "a Counter of text": b"ccollections\nCounter\n\x8c\1a\x85R",
    "encoded with code": b"c_codecs\nencode\n\x8c\1a\x8c\5rot13\x86R",
    "encoded number": b"c_codecs\nencode\nK\1\x8c\6latin1\x86R",
}


@pytest.mark.parametrize("what", INVALID_CALLS)
def test_only_constructors_are_called(refusal, what):
    assert "damaged" not in refusal(pickled(INVALID_CALLS[what]))


INVALID_STATES = {
    "of a dictionary": b"}}b",
    "of a list": b"]}b",
    "of text": b"\x8c\1a}b",
    "of a name": b"ccollections\nOrderedDict\n}b",
    "attributes that are no dictionary": b"cargparse\nNamespace\n)\x81]b",
}


@pytest.mark.parametrize("what", INVALID_STATES)
def test_invalid_states_are_refused(refusal, what):
    refusal(pickled(INVALID_STATES[what]))


def test_state_of_an_ordered_dict_is_ignored(read_watched):
    content = pickled(ORDERED_DICT + b"}\x8c\x09__class__\x8c\1xsb")
    assert read_watched(content) == {}
    assert type(read_watched(content)) is dict


FOUR_GIGABYTES = b"\xff" * 4
DAMAGED = {
    "memo index": b"Nr" + FOUR_GIGABYTES,
    "memo of nothing": b"\x94N",
    "never remembered": b"h\7",
    "bytes": b"B" + FOUR_GIGABYTES,
    "bytes of 2 ** 63": b"\x8e" + struct.pack("<Q", 1 << 63),
    "bytearray": b"\x96" + struct.pack("<Q", 1 << 62),
    "text": b"X" + FOUR_GIGABYTES,
    "Python 2 text": b"T" + FOUR_GIGABYTES,
    "frame": b"\x95" + struct.pack("<Q", 1 << 62) + b"N",
    "bad UTF-8": b"\x8c\2\xff\xfe",
    "name without end": b"c" + b"a" * 100_000,
    "empty stack": b"",
    "no arguments": b"ccollections\nOrderedDict\nR",
    "two values": b"NN",
    "open mark": b"(N",
    "no mark": b"t",
    "no value": b"a",
    "append to nothing": b"Na",
    "append to a tuple": b")Na",
    "key without value": b"}(K\1u",
    "name of numbers": b"K\1K\1\x93",
    "protocol 0": b"\x80\0N",
    "protocol 6": b"\x80\6N",
    "persistent id": b"K\1Q",
    "unknown byte": b"\xff",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_pickles_are_refused(refusal, what):
    """Without allocating the declared sizes; see `refusal`."""
    refusal(pickled(DAMAGED[what]))


KEYS = {
    "tuple": b")",
    "deep tuple": b")" + b"\x85" * 20_000,
    "large integer": b"\x8a\x09" + (((1 << 61) - 1) << 3).to_bytes(9, "little"),
    "float": b"G" + bytes(8),
    "none": b"N",
    "bool": b"\x88",
    "list": b"]",
    "array": EMPTY_ARRAY,
    "long text": b"X" + struct.pack("<I", 5000) + b"a" * 5000,
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_are_names_or_small_integers(refusal, key):
    assert "as a key" in refusal(pickled(b"}" + KEYS[key] + b"Ns"))
    assert "as a key" in refusal(pickled(b"}(" + KEYS[key] + b"Nu"))


@pytest.mark.medium
def test_recursion_and_repetition_are_refused(refusal):
    deep = "nests or repeats"
    assert deep in refusal(pickled(b"]" * 20_000 + b"a" * 19_999))
    assert deep in refusal(pickled(b")" + b"\x85" * 20_000))
    assert deep in refusal(pickled(b"]\x94h\0a"))
    assert deep in refusal(pickled(b"}\x94\x8c\1ah\0s"))
    assert deep in refusal(pickled(b"cargparse\nNamespace\n)\x81\x94}\x8c\1ah\0sb"))
    doubling = b"]\x94" + b"".join(b"]h%ch%c\x86a\x94" % (i, i) for i in range(40))
    assert deep in refusal(pickled(b"(" + doubling + b"t"))


def test_steps_are_limited(refusal, monkeypatch):
    monkeypatch.setattr(unpickler, "_MAX_STEPS", 1000)
    assert "more steps" in refusal(pickled(b"(" + b"]" * 1000 + b"t"))


def test_pairs_are_used_once(read_watched):
    pairs = b"]\x94(\x8c\1aK\1\x86\x8c\1bK\2\x86e"
    repeated = b"ccollections\nOrderedDict\nh\0\x85R"
    assert read_watched(pickled(b"(" + pairs + repeated * 3 + b"t")) == ([], {"a": 1, "b": 2}, {}, {})


def test_calls_are_noticed(read_watched, monkeypatch):
    """`read_watched` fails if a dangerous name is allowed by mistake."""
    monkeypatch.setitem(ALLOWED_GLOBALS, "posix.system", Constructor("posix.system", os.system))
    with pytest.raises(AssertionError, match=r"os\.system"):
        read_watched(pickle.dumps(Calls(os.system, "true")))
