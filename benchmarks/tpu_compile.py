"""Compilation for TPUs on a machine without one, with the compiler that `benchmarks/tpu_env.sh` installs."""

from __future__ import annotations

import hashlib
import json
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from benchmarks.jit_cases import JitCase

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}  # of four chips


def compile_for(chip: str, name: str, case: JitCase, folder: Path) -> Path:
    """Compile for one chip. See `compile_lowered`."""
    devices = topologies.get_topology_desc(TOPOLOGIES[chip], platform="tpu").devices
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    jitted = jax.jit(case.function, donate_argnums=case.donated, in_shardings=sharding, out_shardings=sharding)
    return compile_lowered(jitted.lower(*case.arguments), f"{name}_{chip}", folder)


def compile_lowered(lowered: Any, name: str, folder: Path) -> Path:
    """Return the file with the HLO text, beside a JSON file of the memory in bytes and the seconds of compilation.

    They are those of a former call if the same compiler has compiled the same program.
    """
    content = lowered.as_text() + metadata.version("libtpu") + jax.__version__
    path = folder / f"{name}_{hashlib.sha256(content.encode()).hexdigest()[:8]}.hlo"
    facts = path.with_suffix(".json")
    if not facts.exists():
        start = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(compiled.as_text())
        facts.write_text(json.dumps({"memory": _memory(compiled), "seconds": seconds}))
    return path


def _memory(compiled: Any) -> dict[str, int]:
    sizes = compiled.memory_analysis()
    return {
        "arguments": sizes.argument_size_in_bytes,
        "results": sizes.output_size_in_bytes,
        "results in donated arguments": sizes.alias_size_in_bytes,
        "temporary": sizes.temp_size_in_bytes,
        "program": sizes.generated_code_size_in_bytes,
    }
