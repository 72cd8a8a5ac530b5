"""Writing of COCO files: ids, splits, determinism, and failures."""

from __future__ import annotations

import json
import shlex
import threading
from pathlib import Path
from typing import Any

import pytest
from support.convert_folders import Command

from mrcnn_jax.cli import main
from mrcnn_jax.config import load_config
from mrcnn_jax.errors import ConfigError, DataError
from mrcnn_jax.tools.convert import files, writer
from mrcnn_jax.tools.convert.files import ConversionError
from mrcnn_jax.tools.convert.writer import Conversion, ConvertedImage


def conversion(count: int) -> Conversion:
    """Images in reverse order; every third has no instance."""
    boxes = [{"category_id": 7, "bbox": [1, 2, 3, 4], "area": 12}, {"category_id": 2, "bbox": [0, 0, 1, 1], "area": 1}]
    images = [ConvertedImage(f"{i:03}.png", 10, 20, boxes if i % 3 else []) for i in reversed(range(count))]
    return Conversion(Path("images"), {7: "sieben", 2: "zwei"}, images)


def test_ids_are_in_the_order_of_file_names(tmp_path: Path) -> None:
    (content,) = writer.build_contents(conversion(5), tmp_path / "a.json").values()
    assert [(image["id"], image["file_name"]) for image in content["images"]] == [
        (i + 1, f"{i:03}.png") for i in range(5)
    ]
    assert [annotation["id"] for annotation in content["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert [annotation["image_id"] for annotation in content["annotations"]] == [2, 2, 3, 3, 5, 5]
    assert all(annotation["iscrowd"] == 0 for annotation in content["annotations"])
    assert content["categories"] == [{"id": 2, "name": "zwei"}, {"id": 7, "name": "sieben"}]


def test_splits_are_complete_and_keep_ids(tmp_path: Path) -> None:
    (whole,) = writer.build_contents(conversion(40), tmp_path / "a.json").values()
    parts = writer.build_contents(conversion(40), tmp_path / "a.json", 0.1)
    assert [path.name for path in parts] == ["a_train.json", "a_val.json"]
    train, val = parts.values()
    assert (len(train["images"]), len(val["images"])) == (36, 4)
    for name in ("images", "annotations"):
        assert sorted(train[name] + val[name], key=lambda entry: entry["id"]) == whole[name]
    for part in (train, val):
        assert {a["image_id"] for a in part["annotations"]} <= {image["id"] for image in part["images"]}
        assert part["categories"] == whole["categories"]


def test_folder_as_output(tmp_path: Path) -> None:
    parts = writer.build_contents(conversion(8), tmp_path / "mine", 0.25)
    assert list(parts) == [tmp_path / "mine" / "train.json", tmp_path / "mine" / "val.json"]
    assert list(parts.values()) == list(writer.build_contents(conversion(8), tmp_path / "a.json", 0.25).values())
    with pytest.raises(DataError, match=r"a folder gets train\.json and val\.json, with --holdout=0\.1"):
        writer.output_paths(tmp_path / "mine", 0)
    with pytest.raises(DataError, match=r"a\.txt: the name of a COCO file ends in \.json"):
        writer.output_paths(tmp_path / "a.txt", 0.5)


def validation_images(given: Conversion, seed: int = 0, holdout: float = 0.25) -> set[str]:
    _, val = writer.build_contents(given, Path("a.json"), holdout, seed).values()
    return {image["file_name"] for image in val["images"]}


def test_the_seed_and_the_name_decide_what_is_validation_images() -> None:
    given = conversion(40)
    shuffled = Conversion(given.folder, given.categories, given.images[::-1])
    assert validation_images(given) == validation_images(shuffled)
    assert len({frozenset(validation_images(given, seed)) for seed in range(20)}) > 15
    # Adding images changes the split of few others.
    assert len(validation_images(conversion(44)) & validation_images(given)) >= 7


def test_both_splits_have_an_image() -> None:
    assert len(validation_images(conversion(3), holdout=0.001)) == 1
    assert len(validation_images(conversion(3), holdout=0.999)) == 2
    single = Conversion(Path("images"), {7: "a"}, conversion(3).images[:1])
    with pytest.raises(DataError, match="needs at least two images"):
        validation_images(single)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_are_between_0_and_1(share: float) -> None:
    with pytest.raises(DataError, match="give a number from 0 to 1"):
        writer.output_paths(Path("a.json"), share)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in \.json"):
        writer.output_paths(tmp_path / "a.txt", 0)
    (tmp_path / "a_val.json").write_text("mine")
    assert writer.output_paths(tmp_path / "a.json", 0) == [tmp_path / "a.json"]
    with pytest.raises(DataError, match=r"a_val\.json exists already; remove it"):
        writer.output_paths(tmp_path / "a.json", 0.5)


def test_output_is_deterministic(tmp_path: Path) -> None:
    for name in ("a", "b"):
        writer.write_files(writer.build_contents(conversion(9), tmp_path / f"{name}.json"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_failure_leaves_no_files(failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text = Path.write_text

    def fail_at_second_file(path: Path, *arguments: Any, **options: Any) -> int:
        if "val" in path.name:
            write_text(path, "incompl")
            raise failure
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fail_at_second_file)
    expected = DataError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        writer.write_files(writer.build_contents(conversion(9), tmp_path / "out" / "a.json", 0.5))
    assert list((tmp_path / "out").iterdir()) == []


def test_unwritable_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"cannot be written to: .*file is a file, not a folder; give another --output"
    ):
        writer.output_paths(tmp_path / "file" / "a.json", 0)
    contents = writer.build_contents(conversion(2), tmp_path / "new" / "a.json")
    (tmp_path / "new").write_text("")  # after the check
    with pytest.raises(DataError, match=r"cannot be written .*; make room, or name another --output"):
        writer.write_files(contents)


def test_notes_are_counted_by_kind() -> None:
    images = [ConvertedImage(f"{i}.png", 1, 1, [], (("left out", f"{i} object 1"),)) for i in range(22)]
    (line,) = writer.note_lines(images)
    assert line.startswith("left out (22): 0 object 1, 1 object 1, ")
    assert line.endswith("19 object 1, and 2 more")


def test_convert_all_keeps_the_order_and_reports_all_errors(tmp_path: Path) -> None:
    def convert(item: int) -> int:
        if item % 40 == 7:
            raise ConversionError("sevens", item, "avoid them")
        return item * 2

    assert files.convert_all(tmp_path, convert, range(7), "items") == [0, 2, 4, 6, 8, 10, 12]
    with pytest.raises(DataError, match=r"sevens \(3\): 7, 47, 87; avoid them"):
        files.convert_all(tmp_path, convert, range(100), "items")


def test_interruption_cancels_pending_items(tmp_path: Path) -> None:
    started: list[int] = []
    never = threading.Event()

    def convert(item: int) -> int:
        started.append(item)
        if item == 0:
            raise KeyboardInterrupt  # the main thread gets it from the future
        never.wait(0.01)
        return item

    with pytest.raises(KeyboardInterrupt):
        files.convert_all(tmp_path, convert, range(2000), "items")
    assert len(started) < 1000


def test_message_after_an_interruption(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_files", interrupted)
    monkeypatch.setattr("mrcnn_jax.cli.convert._read", lambda given: conversion(2))
    assert main(["convert", "voc", str(tmp_path), "--output", str(tmp_path / "a.json")]) == 130
    assert capsys.readouterr().err == "Ctrl-C: interrupted\n"


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("output", ["a.json", "."])
def test_printed_commands_are_valid(inside: bool, output: str, tmp_path: Path) -> None:
    """The overrides are fields of the recipe and point to the files."""
    data = tmp_path / "my data"
    folder = data / "images" if inside else tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    contents = writer.build_contents(conversion(9), data / output, 0.5)
    writer.write_files(contents)
    *checks, train = writer.next_commands(contents, folder)
    for command, path in zip(checks, contents, strict=True):
        words = shlex.split(command)
        assert words[:2] == ["mrcnn", "check"]
        assert words[2:] == [str(path), "--images", str(folder)]
    words = shlex.split(train.replace("\\\n", " "))
    assert words[:2] == ["mrcnn", "train"]
    recipe = words[2].removeprefix("--config=")
    config = load_config(recipe, [word.removeprefix("--config.") for word in words if word.startswith("--config.")])
    for split, path in zip((config.data.train, config.data.eval), contents, strict=True):
        assert (Path(config.data.root) / split.annotations).samefile(path)
        assert (Path(config.data.root) / split.images).samefile(folder)
    assert config.model.mask is None  # there are boxes only


def test_help_and_wrong_arguments(tmp_path: Path, command: Command) -> None:
    for arguments in (["--help"], ["masks", "--help"], ["voc", "--help"], ["cityscapes", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(["convert", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main(["convert", "masks", str(tmp_path), str(tmp_path), "--output", "a.json"])  # without --values
    assert json.dumps(command.capsys.readouterr().out).count("--output") >= 3


def test_found_files_are_sorted(tmp_path: Path) -> None:
    assert files.find_files(tmp_path) == []
    for name in ("b.png", "a.png", "c/a.PNG", "c/.hidden.png", "__MACOSX/a.png", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert files.find_files(tmp_path) == [Path("a.png"), Path("b.png"), Path("c/a.PNG")]
    assert files.find_files(tmp_path, without=tmp_path / "c") == [Path("a.png"), Path("b.png")]
