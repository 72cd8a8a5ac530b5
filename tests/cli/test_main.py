"""The command `mrcnn` itself, and the arguments with which commands name a model."""

from __future__ import annotations

import pytest

import mrcnn_jax
from mrcnn_jax.cli import COMMANDS, common
from mrcnn_jax.cli import main as mrcnn


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        mrcnn(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed and text in printed for name, text in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        mrcnn([name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: mrcnn {name} ")


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        mrcnn(["--version"])
    assert capsys.readouterr().out == f"mrcnn {mrcnn_jax.__version__}\n"


def test_unknown_command_is_refused_with_the_known_ones(capsys):
    assert mrcnn_status("tran") == 2
    assert "invalid choice: 'tran' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no model: give --model=RUN or --model=NAME"),
        (("--weights=a.pth",), "--weights=FILE needs --model=NAME"),
        (("--model=a", "--workdir=b"), "--workdir names a second model"),
        (("--model=maskrcnn_resnet50_fpn", "--weights=a.pth", "--workdir=b"), "--workdir names a second model"),
        (("--model=a", "--trash=1"), "unknown argument --trash=1"),
    ],
)
def test_arguments_that_do_not_name_one_model_are_refused(arguments, message, capsys):
    assert mrcnn_status("predict", "a.jpg", "--output=out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_run_may_be_named_like_a_reference_model(tmp_path, monkeypatch):
    """The directory decides."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maskrcnn_resnet50_fpn").mkdir()
    parser = common.make_parser("predict", "")
    common.add_model(parser)
    options, _ = common.parse(parser, ["--model=maskrcnn_resnet50_fpn"])
    assert common.model_source(parser, options).run == "maskrcnn_resnet50_fpn"


def mrcnn_status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        mrcnn(arguments)
    return stop.value.code
