"""The persistent compilation cache: where it lies, and who has the last word."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from mrcnn_jax import cli
from mrcnn_jax.runtime import compilation_cache

# Commands that compile nothing that takes a second, which is the least that JAX keeps.
COMPILE_NOTHING = {"check", "config", "convert", "plan", "report", "weights"}


def test_every_command_that_compiles_keeps_its_programs():
    modules = {name: Path(cli.__file__).with_name(f"{name}.py").read_text() for name in cli.COMMANDS}
    assert {name for name, text in modules.items() if "cache.enable()" not in text} == COMPILE_NOTHING


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
