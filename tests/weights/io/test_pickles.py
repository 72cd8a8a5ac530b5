"""Malicious and damaged pickles: refused with a reason, without executing anything."""

from __future__ import annotations

import builtins
import collections
import contextlib
import copyreg
import operator
import os
import pickle
import pickletools
import struct
import subprocess

import numpy as np
import pytest

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io import pickles, torch_files
from mrcnn_jax.weights.io.pickles import Constructor

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


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


COMMAND = text("touch CANARY")
CALLING_OPCODES = {
    "GLOBAL, REDUCE": b"cposix\nsystem\n" + COMMAND + b"\x85R",
    "STACK_GLOBAL, REDUCE": text("posix") + text("system") + b"\x93" + COMMAND + b"\x85R",
    "INST": b"(" + COMMAND + b"iposix\nsystem\n",
    "OBJ": b"(cposix\nsystem\n" + COMMAND + b"o",
    "NEWOBJ": b"cposix\nsystem\n" + COMMAND + b"\x85\x81",
    "NEWOBJ_EX": b"cposix\nsystem\n" + COMMAND + b"\x85}\x92",
    "EXT1": b"\x82\xf0" + COMMAND + b"\x85R",
    "EXT2": b"\x83\xf0\0" + COMMAND + b"\x85R",
    "EXT4": b"\x84\xf0\0\0\0" + COMMAND + b"\x85R",
    "BUILD of a class": b"cposix\nsystem\n" + COMMAND + b"b",
    "persistent id": b"Pposix.system\n" + COMMAND + b"\x85R",
    "text": text("posix.system") + COMMAND + b"\x85R",
    "INST without arguments": b"(iantigravity\n__doc__\n",
    "a method": b"ccollections\nOrderedDict.fromkeys\n]\x85R",
    "a method of a constructor": b"ccollections\nOrderedDict._build\n]\x85R",
}


@pytest.mark.parametrize("opcodes", CALLING_OPCODES)
@pytest.mark.parametrize("is_cached", [False, True])
def test_every_way_to_call_is_refused(refusal, tmp_path, monkeypatch, opcodes, is_cached):
    """Also a function of the extension registry, registered only or also cached by an earlier unpickler."""
    canary = tmp_path / "canary"
    copyreg.add_extension("posix", "system", 240)
    try:
        if is_cached:
            assert pickle.loads(pickled(b"\x82\xf0")) is os.system
        refusal(
            pickled(
                CALLING_OPCODES[opcodes]
                .replace(b"CANARY", str(canary).encode())
                .replace(bytes([len("touch CANARY")]) + b"touch", bytes([len(f"touch {canary}")]) + b"touch")
            )
        )
    finally:
        copyreg.remove_extension("posix", "system", 240)
    assert not canary.exists()


def test_every_opcode_is_read_or_refused(read_watched):
    """Whatever the stack holds: reading has no side effects, and no exception but WeightsError leaves it."""
    stacks = (
        b"(",
        b"(" + text("os") + text("system"),
        DTYPE + b"}",
        b"ccollections\nOrderedDict\n)}",
        b"(cargparse\nNamespace\n)",
    )
    for opcode in pickletools.opcodes:
        for stack in stacks:
            for rest in (b"", b"os\nsystem\n", b"\1\0\0\0\0\0\0\0a"):
                with contextlib.suppress(WeightsError):
                    read_watched(pickled(stack + opcode.code.encode("latin-1") + rest))


@pytest.mark.parametrize("name", ["os\nsystem", "collections\nOrderedDict.__class__", "numpy\nndarray.tofile"])
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
    "NEWOBJ of a constructor": b"ccollections\nOrderedDict\n)\x81",
    "too many arguments": b"ccollections\nCounter\n}}\x86R",
    "a name as a value": b"ccollections\nOrderedDict\n",
    "an OrderedDict of no pairs": b"ccollections\nOrderedDict\n]K\1a\x85R",
    "a Counter of text": b"ccollections\nCounter\n\x8c\1a\x85R",
    "attributes of a call": b"cargparse\nNamespace\nccollections\nOrderedDict\n\x85R",
    "encoded with code": b"c_codecs\nencode\n\x8c\1a\x8c\5rot13\x86R",
    "encoded number": b"c_codecs\nencode\nK\1\x8c\6latin1\x86R",
}


@pytest.mark.parametrize("what", INVALID_CALLS)
def test_only_constructors_are_called(refusal, what):
    refusal(pickled(INVALID_CALLS[what]))


STATES = {
    "dictionary": b"}" + text("value") + b"K\1s",
    "slots": b"N}" + text("value") + b"K\1s\x86",
    "both": b"}" + text("_build") + b"K\1s}" + text("_build") + b"K\1s\x86",
    "list": b"]",
}
WITHOUT_STATE = {
    "dictionary": b"}",
    "list": b"]",
    "text": b"\x8c\1a",
    "array": EMPTY_ARRAY + b"(K\1K\0\x85" + DTYPE + b"\x89C\0tb",
    **{name: b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n" for name in torch_files.ALLOWED},
}


@pytest.mark.parametrize("state", STATES)
def test_replacements_cannot_be_changed(refusal, state):
    """BUILD would otherwise set attributes, also of functions and classes."""
    before = {name: dict(getattr(value, "__dict__", {})) for name, value in torch_files.ALLOWED.items()}
    for name, value in WITHOUT_STATE.items():
        refusal(pickled(value + STATES[state] + b"b"))
        assert {key: dict(getattr(v, "__dict__", {})) for key, v in torch_files.ALLOWED.items()} == before, name


@pytest.mark.parametrize("name", torch_files.ALLOWED)
def test_everything_allowed_has_a_state_of_its_own(name):
    value = torch_files.ALLOWED[name]
    assert isinstance(value, str) or value is pickles.PickledAttributes or isinstance(value, pickles.PickledValue)


def test_state_of_an_ordered_dict_is_ignored(read_watched):
    content = pickled(ORDERED_DICT + b"}\x8c\x09__class__\x8c\1xsb")
    assert read_watched(content) == {}
    assert type(read_watched(content)) is dict


DAMAGED = {
    "memo index": b"Nr\xff\xff\xff\xff",
    "memo of nothing": b"\x94",
    "never remembered": b"h\7",
    "bytes of 2 ** 63": b"\x8e" + struct.pack("<Q", 1 << 63),
    "bytearray": b"\x96" + struct.pack("<Q", 1 << 62),
    "text": b"X" + struct.pack("<I", 100_000),
    "Python 2 text": b"T" + struct.pack("<i", 100_000),
    "frame": b"\x95" + struct.pack("<Q", 1 << 62) + b"N",
    "bad UTF-8": b"\x8c\2\xff\xfe",
    "name without end": b"c" + b"a" * 100_000,
    "empty stack": b"",
    "no arguments": b"ccollections\nOrderedDict\nR",
    "no mark": b"t",
    "no value": b"a",
    "append to nothing": b"Na",
    "append to a tuple": b")Na",
    "key without value": b"}(K\1u",
    "unhashable key": b"}]Ns",
    "name of numbers": b"K\1K\1\x93",
    "protocol 6": b"\x80\6N",
    "persistent id": b"K\1Q",
    "buffer": b"\x97",
    "unknown byte": b"\xff",
    "set": b"\x8f",
    "frozenset": b"(K\1\x91",
    "complex numbers in a set": b"(K\1" + b"\x91\x85",
    "memoryview": b"\x96" + struct.pack("<Q", 1) + b"a\x98",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_pickles_are_refused(refusal, what):
    refusal(pickled(DAMAGED[what]))


KEYS = {
    "tuple": b")",
    "float": b"G" + bytes(8),
    "none": b"N",
    "bool": b"\x88",
    "array": EMPTY_ARRAY,
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_are_names_or_integers(refusal, key):
    assert "as a key" in refusal(pickled(b"}" + KEYS[key] + b"Ns"))
    assert "as a key" in refusal(pickled(b"}(" + KEYS[key] + b"Nu"))


def test_recursion_and_repetition_are_refused(refusal):
    deep = "RecursionError"
    assert deep in refusal(pickled(b"]" * 20_000 + b"a" * 19_999))
    assert deep in refusal(pickled(b")" + b"\x85" * 20_000))
    assert deep in refusal(pickled(b"]\x94h\0a"))
    assert deep in refusal(pickled(b"}\x94\x8c\1ah\0s"))
    assert deep in refusal(pickled(b"cargparse\nNamespace\n)\x81\x94}\x8c\1ah\0sb"))
    doubling = b"]\x94" + b"".join(b"]h%ch%c\x86a\x94" % (i, i) for i in range(40))
    assert "without limit" in refusal(pickled(b"(" + doubling + b"t"))


def test_calls_are_noticed(read_watched, monkeypatch):
    """`read_watched` fails if a dangerous name is allowed by mistake."""
    monkeypatch.setitem(pickles.ALLOWED, "posix.system", Constructor(os.system))
    with pytest.raises(AssertionError, match=r"os\.system"):
        read_watched(pickle.dumps(Calls(os.system, "true")))
