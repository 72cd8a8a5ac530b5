"""Files of torch.save in both formats: equal to what torch reads; invalid storages and tensors are refused."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

ZIP, LEGACY = True, False
FORMATS = pytest.mark.parametrize("new_format", [ZIP, LEGACY], ids=["zip", "legacy"])


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def save(torch):
    def make(content, new_format):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=new_format)
        return buffer.getvalue()

    return make


def tensors(torch):
    """Tensors of every dtype and every kind of view."""
    values = torch.arange(24).reshape(2, 3, 4)
    kinds = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    return {
        **{kind: (values - 5 * (kind != "uint8")).to(getattr(torch, kind)) for kind in kinds},
        "bfloat16 fractions": base.bfloat16(),
        "transposed": base.T,
        "every second": base[::2, 1::3],
        "permuted": values.permute(2, 0, 1),
        "row of the same storage": base[4],
        "expanded": base[:1].expand(5, 8),
        "0-d": torch.tensor(3.5),
        "0-d integer": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "nothing": torch.tensor([]),
        "parameter": torch.nn.Parameter(base),
        "large": torch.zeros(300, 1000).normal_(generator=torch.Generator().manual_seed(1)),
    }


@FORMATS
def test_tensors_of_every_kind(torch, save, read_watched, new_format):
    expected = tensors(torch)
    loaded = read_watched(save(expected, new_format))
    assert list(loaded) == list(expected)
    for name, tensor in expected.items():
        reference = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
        np.testing.assert_array_equal(loaded[name], reference, strict=True, err_msg=name)
        assert loaded[name].flags.aligned
        assert not loaded[name].flags.writeable


@FORMATS
def test_shared_storages_are_shared(torch, save, read_watched, new_format):
    base = torch.arange(100, dtype=torch.bfloat16)
    loaded = read_watched(save({"all": base, "part": base[10:20]}, new_format))
    assert np.shares_memory(loaded["all"], loaded["part"])


@pytest.mark.medium
@FORMATS
def test_a_training_checkpoint(torch, save, read_watched, new_format):
    """As in torchvision's reference script: model, optimizer, scheduler and command-line flags."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22])
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "args": argparse.Namespace(lr=0.02, device="cpu", output_dir=None),
        "epoch": 3,
        "plain": [1, 0.5, "text", None, True, (1, 2)],
        "torch": [torch.Size([1, 2]), torch.device("cuda", 1), torch.float32],
    }
    loaded = read_watched(save(content, new_format))
    assert {name: value.shape for name, value in loaded["model"].items()} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }
    np.testing.assert_array_equal(loaded["model"]["1.running_mean"], model[1].running_mean.numpy())
    moments = content["optimizer"]["state"][0]["exp_avg"]
    np.testing.assert_array_equal(loaded["optimizer"]["state"][0]["exp_avg"], moments.numpy())
    assert loaded["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]
    assert loaded["lr_scheduler"]["milestones"] == {16: 1, 22: 1}
    assert loaded["args"] == {"lr": 0.02, "device": "cpu", "output_dir": None}
    assert (loaded["epoch"], loaded["plain"]) == (3, content["plain"])
    assert loaded["torch"] == [(1, 2), "cuda:1", "torch.float32"]


@FORMATS
def test_arrays_among_tensors(torch, save, read_watched, new_format):
    loaded = read_watched(save({"a": np.arange(6.0).reshape(2, 3), "b": torch.ones(2)}, new_format))
    np.testing.assert_array_equal(loaded["a"], np.arange(6.0).reshape(2, 3), strict=True)


@FORMATS
def test_whole_modules_are_refused(torch, save, refusal, new_format):
    assert "state_dict" in refusal(save(torch.nn.Linear(2, 2), new_format))


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@FORMATS
def test_calls_are_refused(torch, save, refusal, tmp_path, new_format):
    canary = tmp_path / "canary"
    call = Calls(os.system, f"touch {canary}")
    state = collections.OrderedDict(a=torch.ones(2), b=call)
    assert "posix.system" in refusal(save({"model": state}, new_format))
    state = collections.OrderedDict(a=torch.ones(2))
    state._metadata = call
    assert "posix.system" in refusal(save({"model": state}, new_format))
    buffer = torch.ones(2).numpy().tobytes()
    assert "_load_from_bytes" in refusal(save(Calls(torch.storage._load_from_bytes, buffer), new_format))
    assert not canary.exists()


@FORMATS
@pytest.mark.parametrize("kind", ["sparse", "complex"])
def test_other_tensors_are_refused(torch, save, refusal, new_format, kind):
    make = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "complex": lambda: torch.ones(2, dtype=torch.complex64),
    }
    assert "refers to" in refusal(save({"a": make[kind]()}, new_format))


# Files written by hand, which can be invalid.
FLOATS = b"ctorch\nFloatStorage\n"
FOUR = np.arange(4, dtype="<f4").tobytes()
HUGE = b"\x8a\x09" + ((1 << 66) + 1).to_bytes(9, "little")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


KEY, CPU, COUNT, FIRST = text("0"), text("cpu"), number(4), number(0)
SHAPE, STRIDES = numbers(4), numbers(1)


def storage(kind=FLOATS, key=KEY, device=CPU, count=COUNT, word="storage", view=b"") -> bytes:
    return b"(" + text(word) + kind + key + device + count + view + b"tQ"


def tensor(offset=FIRST, shape=SHAPE, strides=STRIDES, of=None) -> bytes:
    arguments = (storage() if of is None else of) + offset + shape + strides + b"\x89N"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def zip_of(body: bytes, data: bytes = FOUR, **others: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\2" + body + b".")
        archive.writestr("archive/data/0", data)
        for name, content in others.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def legacy_of(body: bytes, data: bytes = FOUR, keys=("0",), count: int = 4, **system: object) -> bytes:
    magic, protocol = 0x1950A86A20F9469CFC6C, system.pop("protocol", 1001)
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}, **system}
    head = b"".join(pickle.dumps(part, 2) for part in (magic, protocol, machine))
    tail = pickle.dumps(list(keys), 2) + struct.pack("<q", count) + data
    return head + b"\x80\2" + body + b"." + tail


HANDMADE = pytest.mark.parametrize("make", [zip_of, legacy_of], ids=["zip", "legacy"])


@HANDMADE
def test_valid_handmade_file(read_watched, make):
    np.testing.assert_array_equal(read_watched(make(tensor())), np.arange(4, dtype=np.float32), strict=True)
    old = b"ctorch._utils\n_rebuild_tensor\n(" + storage() + number(1) + numbers(3) + numbers(1) + b"tR"
    np.testing.assert_array_equal(read_watched(make(old)), np.arange(1, 4, dtype=np.float32), strict=True)


TENSORS = {
    "one beyond": tensor(offset=number(1)),
    "offset beyond": tensor(offset=number(5), shape=numbers(1)),
    "huge offset": tensor(offset=HUGE),
    "negative offset": tensor(offset=number(-1)),
    "offset of text": tensor(offset=text("0")),
    "one too many": tensor(shape=numbers(5)),
    "huge shape": tensor(shape=b"(" + HUGE + b"t"),
    "huge shape, no strides": tensor(shape=b"(" + HUGE + b"t", strides=numbers(0)),
    "expanded without measure": tensor(shape=numbers(1 << 15, 1 << 15), strides=numbers(0, 0)),
    "empty but huge": tensor(shape=b"(" + number(0) + HUGE + b"t", strides=numbers(1, 1)),
    "negative shape": tensor(shape=numbers(-4)),
    "float shape": tensor(shape=b"G" + struct.pack(">d", 4) + b"\x85"),
    "many axes": tensor(shape=numbers(*[1] * 80), strides=numbers(*[1] * 80)),
    "negative stride": tensor(strides=numbers(-1), offset=number(3)),
    "wide stride": tensor(strides=numbers(2)),
    "huge stride": tensor(strides=b"(" + HUGE + b"t"),
    "stride of text": tensor(strides=b"(" + text("1") + b"t"),
    "too few strides": tensor(strides=b")"),
    "too many strides": tensor(strides=numbers(1, 1)),
    "storage in a list": tensor(of=b"]"),
    "a tensor for a storage": tensor(of=tensor()),
    "a type for a storage": tensor(of=FLOATS),
    "a name for a storage": tensor(of=text("0")),
    "a parameter of a storage": b"ctorch._utils\n_rebuild_parameter\n(" + storage() + b"\x88Nt" + b"R",
    "a storage's type as a value": FLOATS,
    "a storage's type that is called": FLOATS + b")R",  # not a constructor
    "a storage with a state": storage() + b"}b",
}


@HANDMADE
@pytest.mark.parametrize("what", TENSORS)
def test_invalid_tensors_are_refused(refusal, make, what):
    refusal(make(TENSORS[what]))


STORAGES = {
    "word": storage(word="module"),
    "type by name": storage(kind=text("torch.FloatStorage")),
    "type that is a call": storage(kind=b"cposix\nsystem\n"),
    "type of no numbers": storage(kind=b"ctorch\nUntypedStorage\n"),
    "no such key": storage(key=text("1")),
    "path as key": storage(key=text("../data.pkl")),
    "too small": storage(count=number(3)),
    "too large": storage(count=number(5)),
    "far too large": storage(count=HUGE),
    "negative": storage(count=number(-4)),
    "text as count": storage(count=text("4")),
    "bool as count": storage(count=b"\x88"),
    "view": storage(view=b"(" + text("0") + number(0) + number(4) + b"t"),
    "another type": storage(kind=b"ctorch\nDoubleStorage\n"),
    "number for an id": number(7) + b"Q",
    "text for an id": text("storage") + b"Q",
    "nothing for an id": b"NQ",
    "empty id": b")Q",
    "list for an id": b"]" + text("storage") + b"aQ",
    "two types for one key": storage() + storage(kind=b"ctorch\nIntStorage\n") + b"\x86",
    "two counts for one key": storage() + storage(count=number(2)) + b"\x86",
}


@HANDMADE
@pytest.mark.parametrize("what", STORAGES)
def test_invalid_storages_are_refused(refusal, make, what):
    body = STORAGES[what] if "two" in what else tensor(of=STORAGES[what])
    refusal(make(body))


def test_compressed_zip_files(read_watched):
    """As after unpacking and packing with another program."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(zip_of(tensor()))) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name), zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(read_watched(buffer.getvalue()), np.arange(4, dtype=np.float32), strict=True)


def test_members_are_found_by_their_local_headers(refusal, read_watched):
    """Their names and extra fields may have another length than in the directory; the name must be the same."""
    content = zip_of(tensor())
    assert "get the file again" in refusal(content.replace(b"archive/data/0", b"archive/data/1", 1))
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            with target.open(name, "w", force_zip64=True) as member:
                member.write(source.read(name))
    np.testing.assert_array_equal(read_watched(buffer.getvalue()), np.arange(4, dtype=np.float32), strict=True)


def test_other_zip_files_are_refused(refusal, read_watched):
    assert "big-endian" in refusal(zip_of(tensor(), byteorder=b"big"))
    assert "TorchScript" in refusal(zip_of(tensor(), **{"constants.pkl": b"\x80\2)."}))
    assert read_watched(zip_of(tensor(), byteorder=b"little")).shape == (4,)


def test_other_legacy_files_are_refused(refusal):
    assert "big-endian" in refusal(legacy_of(tensor(), little_endian=False))
    assert "unknown version" in refusal(legacy_of(tensor(), protocol=1002))


def test_storages_of_a_legacy_file_are_those_of_its_tensors(refusal):
    for keys in [(), ("1",), ("0", "1"), ("0", "0"), (0,), (None,)]:
        assert "its storages are not those" in refusal(legacy_of(tensor(), keys=keys))
    for count in (3, 5, -1, 1 << 62):
        assert "numbers instead of 4" in refusal(legacy_of(tensor(), count=count))
    assert "15 bytes instead of 16" in refusal(legacy_of(tensor(), data=FOUR[:-1]))
