"""Tests of the search for files, and of hints for missing files with similar names."""

from __future__ import annotations

import logging
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.data import file_names, load_split
from mrcnn_jax.errors import DataError, ImageError
from mrcnn_jax.inference.predictor import read_image
from mrcnn_jax.tools.convert import files

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "\u00fcber.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("asked", "there", "how"),
    [
        (COMPOSED, DECOMPOSED, "in Unicode form (NFC, NFD)"),
        (DECOMPOSED, COMPOSED, "in Unicode form (NFC, NFD)"),
        ("IMG_1.JPG", "img_1.jpg", "in upper and lower case"),
        ("a/b.png", "A/b.png", "in upper and lower case"),
        ("a%20b.png", "a b.png", "in percent escapes (%20 is a space)"),
        ("a b.png", "a%20b.png", "in percent escapes (%20 is a space)"),
        ("a\\b.png", "a/b.png", "in backslashes: write / between folders"),
        ("a.jpg", "a.jpeg", "in suffix"),
        (" a.jpg", "a.jpg", "in spelling"),
        ("\u00e4.png", os.fsdecode(b"\xe4.png"), "in encoding: it is not UTF-8, rename the file"),
        ("a.jpg", "a.json", None),
        ("a.jpg", "ab.jpg", None),
        ("a.jpg", "a.jpg", None),
    ],
)
def test_hint_at_a_name_that_differs_in_spelling(tmp_path: Path, asked: str, there: str, how: str | None) -> None:
    path = tmp_path / there
    path.parent.mkdir(exist_ok=True)
    path.touch()
    hint = file_names.describe_similar(tmp_path, asked)
    if how is None:
        assert hint is None
        return
    shown = os.fsencode(there).decode("utf-8", "backslashreplace")
    assert hint == f"{shown} exists, which differs {how}"
    if asked != there:
        assert file_names.describe_missing(tmp_path / asked) == f"No such file or directory; {hint}"


def test_no_hint_for_two_similar_names(tmp_path: Path) -> None:
    for name in ("a.JPG", "A.jpg"):
        (tmp_path / name).touch()
    assert file_names.describe_similar(tmp_path, "A.JPG") is None


def test_the_same_hint_from_training_check_and_prediction(
    coco_folder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images = coco_folder.root / "images"
    (images / "2.png").rename(images / "2.PNG")
    hint = "2.PNG exists, which differs in upper and lower case"
    with pytest.raises(
        DataError, match=rf"2\.png \(id 98; {hint}\); make file_name equal to the names of the files"
    ) as refused:
        load_split(coco_folder.config().data, "train")
    assert mrcnn(["check", str(coco_folder.root)]) == 1
    assert str(refused.value) in capsys.readouterr().out.splitlines()
    with pytest.raises(ImageError, match=hint):
        read_image(images / "2.png")


def test_links_to_folders_are_followed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (
        "in/a.png",
        "in/sub/b.png",
        "elsewhere/c.png",
        "elsewhere/deep/d.png",
        "in/.hidden/e.png",
        "in/out/f.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root = tmp_path / "in"
    for link, target in {"l1": "../elsewhere", "l2": "../elsewhere/deep", "l3": "sub", "l4": "..", "l5": "."}.items():
        (root / link).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    with caplog.at_level(logging.INFO):
        found = list(file_names.walk_files(root, without=root / "out", failed=pytest.fail))
    assert sorted(str(path.relative_to(root)) for path in found) == ["a.png", "l1/c.png", "l1/deep/d.png", "sub/b.png"]
    assert len([message for message in caplog.messages if "skipped, because it links to" in message]) == 5
    assert [str(path) for path in files.find_files(root)] == [
        "a.png",
        "l1/c.png",
        "l1/deep/d.png",
        "out/f.png",
        "sub/b.png",
    ]


def test_unreadable_folder_is_reported(tmp_path: Path) -> None:
    told: list[OSError] = []
    assert list(file_names.walk_files(tmp_path / "absent", without=None, failed=told.append)) == []
    assert isinstance(told[0], FileNotFoundError)


def test_conversion_finds_images_by_content_and_refuses_names_that_json_cannot_have(tmp_path: Path) -> None:
    (tmp_path / "a.jfif").touch()
    (tmp_path / "b").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "c.xml").write_bytes(b"<a/>")
    assert [str(path) for path in files.find_files(tmp_path)] == ["a.jfif", "b"]
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe4.png")).touch()
    with pytest.raises(DataError, match=r"file names that are not UTF-8 \(1\): '\\udce4\.png'; rename them"):
        files.find_files(tmp_path)
