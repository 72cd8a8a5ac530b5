"""The folder of the persistent compilation cache."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from mrcnn_jax import cli
from mrcnn_jax.runtime import compilation_cache

# Commands whose compilations take less than a second, the minimum for JAX to cache a program.
WITHOUT_CACHE = {"check", "config", "convert", "export", "plan", "report", "weights"}


def test_every_command_that_compiles_enables_the_cache():
    modules = {name: Path(cli.__file__).with_name(f"{name}.py").read_text() for name in cli.COMMANDS}
    assert {name for name, text in modules.items() if "cache.enable()" not in text} == WITHOUT_CACHE


@pytest.fixture(autouse=True)
def restored():
    """Restore the cache folder of the tests."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_enable_sets_a_folder_in_the_root(monkeypatch, tmp_path):
    monkeypatch.setenv("MRCNN_JAX_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla")


def test_enable_keeps_a_folder_that_is_set(monkeypatch, tmp_path):
    monkeypatch.setenv("MRCNN_JAX_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"


def test_describe(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert compilation_cache.describe() == f"; compiled programs are cached in {tmp_path}"
    jax.config.update("jax_compilation_cache_dir", None)
    assert compilation_cache.describe() == ""
