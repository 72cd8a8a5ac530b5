"""The persistent compilation cache: where it lies, and who has the last word."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from mrcnn_jax import compilation_cache

ROOT = Path(__file__).resolve().parent.parent
# Commands that compile nothing that takes a second, which is the least that JAX keeps.
COMPILE_NOTHING = {
    "mrcnn_jax/config/__main__.py",
    "mrcnn_jax/data/check/__main__.py",
    "mrcnn_jax/data/convert/__main__.py",
    "mrcnn_jax/data/plan/__main__.py",
    "mrcnn_jax/data/workers.py",
    "mrcnn_jax/evaluation/report/__main__.py",
    "mrcnn_jax/weights/__main__.py",
}


def test_every_command_that_compiles_keeps_its_programs():
    files = [*ROOT.glob("*.py"), *(ROOT / "mrcnn_jax").rglob("*.py")]
    commands = {path: path.read_text() for path in files if 'if __name__ == "__main__":' in path.read_text()}
    keeping = {path.relative_to(ROOT).as_posix() for path, text in commands.items() if "cache.enable()" in text}
    assert {"train.py", "eval.py", "predict.py"} < keeping
    assert {path.relative_to(ROOT).as_posix() for path in commands} == keeping | COMPILE_NOTHING


@pytest.fixture(autouse=True)
def restored():
    """Leave the tests' own cache as it was."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MRCNN_JAX_CACHE", str(tmp_path))
    assert compilation_cache.cache_root() == tmp_path
    monkeypatch.delenv("MRCNN_JAX_CACHE")
    assert compilation_cache.cache_root() == Path.home() / ".cache" / "mrcnn_jax"


def test_enable_keeps_programs_below_the_root(monkeypatch, tmp_path):
    monkeypatch.setenv("MRCNN_JAX_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla")


def test_enable_respects_a_place_that_jax_was_told(monkeypatch, tmp_path):
    monkeypatch.setenv("MRCNN_JAX_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"


def test_the_place_is_told(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert compilation_cache.described() == f"; compiled programs are kept in {tmp_path}"
    jax.config.update("jax_compilation_cache_dir", None)
    assert compilation_cache.described() == ""
