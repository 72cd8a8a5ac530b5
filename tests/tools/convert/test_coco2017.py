"""Download of COCO 2017 from a server on loopback, with small archives."""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import zipfile
from types import SimpleNamespace

import pytest

from mrcnn_jax.cli import main
from mrcnn_jax.tools.convert import coco2017

CONTENTS = {
    "annotations": {f"annotations/{kind}_{split}2017.json": b"{}" for kind in "abc" for split in ("train", "val")},
    "val": {f"val2017/{i:012}.jpg": bytes([i]) * 5000 for i in range(3)},
    "train": {f"train2017/{i:012}.jpg": bytes([i]) * 7000 for i in range(4)},
}


def zipped(contents, link=None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.mkdir("val2017")  # COCO's archives have such entries
        for name, content in contents.items():
            archive.writestr(name, content)
        if link:
            member = zipfile.ZipInfo(link)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, "/etc")
    return buffer.getvalue()


@pytest.fixture
def server(download_server, monkeypatch):
    """Serve archives of a few files, whose sizes and hashes stand for COCO's."""
    archives = {"annotations": coco2017.ANNOTATIONS, **coco2017.IMAGES}

    def serve(name, content):
        download_server.files[f"/{archives[name].address}"] = content
        size = sum(map(len, CONTENTS[name].values()))
        changed = archives[name]._replace(
            files=len(CONTENTS[name]), size=len(content), unpacked_size=size, md5=hashlib.md5(content).hexdigest()
        )
        if name == "annotations":
            monkeypatch.setattr(coco2017, "ANNOTATIONS", changed)
        else:
            monkeypatch.setitem(coco2017.IMAGES, name, changed)

    for name in archives:
        serve(name, zipped(CONTENTS[name]))
    return SimpleNamespace(http=download_server, serve=serve)


@pytest.fixture
def run(tmp_path, capsys):
    """Run the command; returns its exit status and what it prints."""

    def convert(*arguments):
        status = main(["convert", "coco2017", str(tmp_path / "coco"), *arguments])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return convert


def unpacked(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def asked(server):
    return [path.rpartition("/")[2] for path, _ in server.http.requests]


def test_everything_is_downloaded_and_unpacked_once(server, run, tmp_path):
    status, output = run()
    assert status == 0
    assert unpacked(tmp_path / "coco") == {**CONTENTS["annotations"], **CONTENTS["val"], **CONTENTS["train"]}
    assert asked(server) == ["annotations_trainval2017.zip", "val2017.zip", "train2017.zip"]
    assert output.index("0.0 GB of disk space") < output.index("MB of")  # before the first download
    assert run()[0] == 0
    assert len(server.http.requests) == 3


def test_images_of_one_split(server, run, tmp_path):
    assert run("--split=val")[0] == 0
    assert unpacked(tmp_path / "coco") == {**CONTENTS["annotations"], **CONTENTS["val"]}
    status, output = run()  # only the others
    assert (status, asked(server)[2:]) == (0, ["train2017.zip"])
    assert "val2017.zip" not in output


def test_the_sizes_are_those_of_coco_and_are_printed_before_a_small_disk_is_refused(run, tmp_path, monkeypatch):
    """Needed: 0.84 + 0.84 + 20 GB unpacked, and the largest archive, 19.3 GB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=40 * 10**9))
    status, output = run()
    assert status == 2
    assert "annotations_trainval2017.zip: 0.3 GB" in output
    assert "http://images.cocodataset.org/zips/train2017.zip: 19.3 GB" in output
    assert "41.0 GB of disk space are needed" in output
    assert "(--split=val)" in output
    assert not (tmp_path / "coco").exists()


def test_files_that_are_there_need_no_space(server, run, tmp_path, monkeypatch):
    """Half of a download and one of the images; the disk has exactly what the rest needs."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for name, content in CONTENTS["annotations"].items():
        (folder / name).write_bytes(content)
    archive = server.http.files["/zips/val2017.zip"]
    (folder / "val2017.zip.part").write_bytes(archive[:8000])
    (folder / "val2017").mkdir()
    name, content = next(iter(CONTENTS["val"].items()))
    (folder / name).write_bytes(content)
    needed = 2 * 5000 + len(archive) - 8000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    assert run("--split=val")[0] == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    assert run("--split=val")[0] == 0
    assert server.http.requests == [("/zips/val2017.zip", "bytes=8000-")]


def test_unpacking_continues_after_an_interruption(server, run, tmp_path, monkeypatch):
    copy, copied = shutil.copyfileobj, []

    def interrupted(source, file):
        if len(copied) == 8:
            file.write(source.read(100))
            raise KeyboardInterrupt
        copied.append(source.name)
        copy(source, file)

    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    assert run("--split=val")[0] == 130
    assert not list((tmp_path / "coco").rglob("*2.jpg"))  # a file has its name only when it is complete
    monkeypatch.setattr(shutil, "copyfileobj", lambda source, file: (copied.append(source.name), copy(source, file)))
    assert run("--split=val")[0] == 0
    assert sorted(copied) == sorted([*CONTENTS["annotations"], *CONTENTS["val"]])  # each of them once
    assert len(server.http.requests) == 2
    assert unpacked(tmp_path / "coco") == {**CONTENTS["annotations"], **CONTENTS["val"]}


def test_an_archive_with_another_content_is_refused(server, run, tmp_path):
    archive = bytearray(server.http.files["/zips/val2017.zip"])
    archive[100] ^= 1
    server.http.files["/zips/val2017.zip"] = bytes(archive)
    status, output = run("--split=val")
    assert status == 2
    assert "its MD5 is" in output
    server.http.files["/zips/val2017.zip"] = bytes(archive)[:-1]
    assert f"it has {len(archive) - 1} bytes, not {len(archive)}" in run("--split=val")[1]
    assert not (tmp_path / "coco" / "val2017").exists()


@pytest.mark.parametrize("name", ["../evil.jpg", "val2017/../../evil.jpg", "/nowhere/evil.jpg", "..\\evil.jpg", None])
def test_names_outside_of_the_folder_are_refused_before_anything_is_written(name, server, run, tmp_path):
    contents = CONTENTS["val"] if name is None else {**CONTENTS["val"], name: b"evil"}
    server.serve("val", zipped(contents, link="val2017/link" if name is None else None))
    status, output = run("--split=val")
    assert status == 2
    assert f"names outside of its folder, or links (1): {name or 'val2017/link'}" in output
    assert set(unpacked(tmp_path)) == {f"coco/{file}" for file in (*CONTENTS["annotations"], "val2017.zip")}


def test_a_damaged_archive_is_named(server, run):
    server.serve("val", b"not a zip file")
    status, output = run("--split=val")
    assert status == 2
    assert "val2017.zip is damaged" in output
