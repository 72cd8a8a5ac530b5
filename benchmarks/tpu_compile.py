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
from mrcnn_jax.training.parallel import CompiledTrainStep

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
MESHES = {4: "v5e:2x2", 16: "v5e:4x4"}  # by number of chips


def compile_for(chip: str, name: str, case: JitCase, folder: Path) -> Path:
    """Compile for one chip. Return the file with the HLO text, beside a JSON file of compiler, seconds and memory.

    They are those of a former call if the same compiler has compiled the same program.
    """
    devices = topologies.get_topology_desc(TOPOLOGIES[chip], platform="tpu").devices
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    jitted = jax.jit(case.function, donate_argnums=case.donated, in_shardings=sharding, out_shardings=sharding)
    return _compile(jitted.lower(*case.arguments), f"{name}_{chip}", folder)


def compile_pmapped(chips: int, name: str, case: JitCase, folder: Path) -> Path:
    """Compile a training step of one device for several v5e chips, see `compile_for`."""
    devices = topologies.get_topology_desc(MESHES[chips], platform="tpu").devices
    state, batch, _ = case.arguments
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((chips, *leaf.shape), leaf.dtype), batch)
    step = CompiledTrainStep(lambda state, batch, key: case.function(state, batch, jax.random.key_data(key)), devices)
    lowered = step.lower(state, batch, jax.eval_shape(lambda: jax.random.key(0)), platform="tpu")
    return _compile(lowered, name, folder)


def _compile(lowered: Any, name: str, folder: Path) -> Path:
    compiler = f"jax {jax.__version__}, libtpu {metadata.version('libtpu')}"
    digest = hashlib.sha256((compiler + lowered.as_text()).encode()).hexdigest()
    path = folder / f"{name}_{digest[:8]}.hlo"
    facts = path.with_suffix(".json")
    if not facts.exists():
        start = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(compiled.as_text())
        facts.write_text(json.dumps({"compiler": compiler, "seconds": seconds, "memory": _memory(compiled)}))
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
