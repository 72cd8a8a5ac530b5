"""Weights files: detection of the format, damaged files, atomic writing, and memory."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.weight_files import read, write

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[3]
RNG = np.random.default_rng(0)
STATE = {
    "backbone.weight": RNG.standard_normal((4, 3, 2, 2)).astype(np.float32),
    "backbone.bias": RNG.standard_normal(4).astype(np.float32),
    "steps": np.array(7),
}


def torch_file(state, new_format: bool) -> bytes:
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    tensors = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
    torch.save(tensors, buffer, _use_new_zipfile_serialization=new_format)
    return buffer.getvalue()


def bfloat16_file(state) -> bytes:
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(value).bfloat16() for name, value in state.items()}, buffer)
    return buffer.getvalue()


def write_and_read_bytes(state, suffix: str, folder: Path) -> bytes:
    write(folder / f"state{suffix}", state)
    return (folder / f"state{suffix}").read_bytes()


def compressed(state) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **state)
    return buffer.getvalue()


FORMATS = {
    "torch zip": lambda state, folder: torch_file(state, True),
    "torch legacy": lambda state, folder: torch_file(state, False),
    "pickle 2": lambda state, folder: pickle.dumps(state, 2),
    "pickle 4": lambda state, folder: pickle.dumps(state, 4),
    "pickle 5": lambda state, folder: pickle.dumps(state, 5),
    "npz": lambda state, folder: write_and_read_bytes(state, ".npz", folder),
    "npz compressed": lambda state, folder: compressed(state),
    "safetensors": lambda state, folder: write_and_read_bytes(state, ".safetensors", folder),
}
# Formats with a checksum of the data.
CHECKED = {"torch zip", "npz", "npz compressed"}
# Bytes at the end where zeros are not detected: data without checksum, and (zip) sizes and the length of the comment.
UNDETECTED = {
    **dict.fromkeys(CHECKED, 22),
    "torch legacy": 7 + max(value.nbytes for value in STATE.values()),  # and the upper bytes of its count
    "safetensors": sum(value.nbytes for value in STATE.values()),
}


@pytest.fixture(params=FORMATS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def content(kind, tmp_path) -> bytes:
    return FORMATS[kind](STATE, tmp_path)


def test_format_is_detected_from_the_content(content, tmp_path):
    for name in ("weights.pth", "weights.npz", "weights"):
        path = tmp_path / name
        path.write_bytes(content)
        for loaded in (read(path), read(str(path))):
            assert set(loaded) == set(STATE)
            for key, value in STATE.items():
                np.testing.assert_array_equal(loaded[key], value, strict=True)


def test_truncated_files_are_refused(content, tmp_path):
    path = tmp_path / "cut"
    path.write_bytes(content)
    for size in range(len(content) - 1, -1, -1):
        os.truncate(path, size)
        with pytest.raises(WeightsError, match=r"cut: .*[Gg]et the file again"):
            read(path)


def test_files_that_end_in_zeros_are_refused(kind, content, tmp_path):
    """As after an interrupted copy into a file that was allocated with its full size."""
    path = tmp_path / "zeros"
    for size in range(0, len(content) - UNDETECTED.get(kind, 0), 7):
        path.write_bytes(content[:size] + bytes(len(content) - size))
        with pytest.raises(WeightsError, match="zeros: "):
            read(path)


@pytest.mark.parametrize("kind", ["torch legacy", "safetensors"], indirect=True)
def test_a_megabyte_of_zeros_at_the_end_is_refused(kind, tmp_path):
    values = RNG.standard_normal((600, 1000)).astype(np.float32)
    content = FORMATS[kind]({"fc.weight": values}, tmp_path)
    path = tmp_path / "half"
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(WeightsError, match="ends in zeros"):
        read(path)
    path.write_bytes(content)
    np.testing.assert_array_equal(read(path)["fc.weight"], values)


@pytest.mark.parametrize("kind", sorted(CHECKED), indirect=True)
def test_changed_byte_is_detected_by_the_checksum(kind, content, tmp_path):
    needle = STATE["backbone.weight"].tobytes()
    place = content.find(needle) + 10 if needle in content else content.find(b".npy") + 60
    path = tmp_path / "changed"
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(WeightsError, match="get the file again"):
        read(path)


def test_random_damage(content, read_watched):
    """Bytes overwritten, removed and repeated at random: read or refused, without side effects."""
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            place = rng.randrange(len(damaged))
            if (action := rng.random()) < 0.6:
                damaged[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256), *b"(Rb.tcQ\x81\x93"])
            elif action < 0.8:
                del damaged[place : place + rng.randrange(1, 20)]
            else:
                damaged[place:place] = damaged[place : place + rng.randrange(1, 200)]
        try:
            read_watched(bytes(damaged))
        except WeightsError:
            refused += 1
    assert refused > 15


OTHERS = {
    "is empty": b"",
    "filled with zeros": bytes(100_000),
    "web page": b"<!DOCTYPE html><html>404</html>",
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "single array": b"\x93NUMPY\1\0" + bytes(100),
    "tar archive": b"data.pkl".ljust(257, b"\0") + b"ustar" + bytes(300),
    "unknown format": b"hello, world",
    r"\\x1b\[31m": b"\x1b[31mred",
}


@pytest.mark.parametrize("reason", OTHERS)
def test_other_formats_are_named(reason, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(OTHERS[reason])
    with pytest.raises(WeightsError, match=rf"weights\.pth: .*{reason}"):
        read(path)


def test_other_archives_are_refused(refusal):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/weights.pth", b"...")
    assert "perhaps it contains weights" in refusal(buffer.getvalue())


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.pth")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_are_replaced_atomically(suffix, tmp_path):
    """Also while arrays that were read are still views of the old file."""
    path = tmp_path / f"state{suffix}"
    write(path, STATE)
    loaded = read(path)
    write(path, {name: value * 2 for name, value in loaded.items()})
    np.testing.assert_array_equal(loaded["backbone.weight"], STATE["backbone.weight"])
    np.testing.assert_array_equal(read(path)["backbone.weight"], STATE["backbone.weight"] * 2)
    before = path.read_bytes()
    with pytest.raises(WeightsError, match="x is complex128, which is not supported"):
        write(path, {**STATE, "x": np.ones(2, complex)})
    with pytest.raises(WeightsError, match="1 is not a string"):
        write(path, {**STATE, 1: np.ones(2)})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"\.npz or \.safetensors"):
        write(tmp_path / "state.pth", STATE)


MEASURE = """
import sys
import numpy as np
from mrcnn_jax.weights.io.weight_files import read

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

before = peak()
arrays = read(sys.argv[1])
total = sum(float(array.sum(dtype=np.float64)) for array in arrays.values())  # every page is read
print((peak() - before), total, "torch" in sys.modules)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not report peak memory")
@pytest.mark.parametrize(
    "kind",
    [
        *("torch zip of bfloat16", "torch legacy", "pickle 2", "npz compressed", "safetensors"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("torch zip", "pickle 4", "pickle 5", "npz")),
    ],
)
def test_memory(kind, tmp_path):
    """Peak memory is less than 2.5 times the size of the file. In a subprocess, because peaks are not reset."""
    values = {f"layer{index}": RNG.standard_normal((1000, 1000)).astype(np.float32) for index in range(6)}
    if kind not in FORMATS:
        for value in values.values():
            value.view(np.uint32)[:] &= 0xFFFF0000  # values that bfloat16 represents exactly
    path = tmp_path / "large"
    path.write_bytes(FORMATS[kind](values, tmp_path) if kind in FORMATS else bfloat16_file(values))
    command = [sys.executable, "-c", MEASURE, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert int(output[0]) < 2.5 * path.stat().st_size
    assert float(output[1]) == sum(float(value.sum(dtype=np.float64)) for value in values.values())
    assert output[2] == "False"
