"""Third-party imports: the model and the training step need only jax, flax, optax and NumPy.

The direction of imports within the package is a contract of import-linter, in pyproject.toml.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from support.launch import launch

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mrcnn_jax"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Third-party packages that a subpackage may import; those not listed here may import any.
THIRD_PARTY = {
    "structures": set(),
    "config": set(),
    "ops": {"jax", "numpy"},
    "models": {"jax", "numpy", "flax"},
    "targets": {"jax", "numpy"},
    "losses": {"jax", "numpy", "optax"},
    "weights": {"jax", "numpy", "flax", "ml_dtypes", "safetensors", "huggingface_hub"},
    "tools.pages": {"numpy", "cv2", "jinja2", "markupsafe"},
}
# Dependencies of flax for checkpoints, which a training step does not need.
CHECKPOINT_PACKAGES = {"orbax-checkpoint", "etils", "tensorstore"}


def imports(path: Path) -> set[str]:
    """Return all modules that a file imports, at any level; `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def members_of(name: str) -> list[str]:
    """Return the modules of a subpackage, such as `ops`."""
    package = f"mrcnn_jax.{name}"
    return [module for module in MODULES if module == package or module.startswith(f"{package}.")]


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_third_party_imports(name):
    for module in members_of(name):
        roots = {imported.split(".")[0] for imported in imports(MODULES[module])}
        foreign = roots - sys.stdlib_module_names - {"mrcnn_jax"} - THIRD_PARTY[name]
        assert not foreign, f"{module} imports {foreign}"


def test_only_one_module_uses_pmap():
    def mentions(path: Path) -> bool:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {getattr(node, "attr", getattr(node, "id", getattr(node, "name", ""))) for node in nodes}
        return "pmap" in names

    files = [*MODULES.values(), *ROOT.glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    assert [path.relative_to(PACKAGE).as_posix() for path in files if mentions(path)] == ["training/parallel.py"]


def test_import_of_the_package_is_lazy():
    program = "import sys, mrcnn_jax, mrcnn_jax.config, mrcnn_jax.structures; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"jax", "flax", "numpy"} & set(loaded.stdout.split())


def dependencies(*names: str) -> set[str]:
    """Return the distributions and their recursive dependencies, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonical(waiting.pop())
        if name in found or name in CHECKPOINT_PACKAGES:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform or Python
        found.add(name)
        waiting += [re.split(r"[^\w.-]", text)[0] for text in requirements if "extra ==" not in text]
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_training_step_needs_no_extras(tmp_path):
    needed = dependencies("jax", "flax", "optax", "numpy")
    blocked = {
        package
        for package, owners in metadata.packages_distributions().items()
        if package != "mrcnn_jax" and not needed & {canonical(owner) for owner in owners}
    }
    for package in ("grain", "tensorflow_datasets", "pycocotools", "cv2", "PIL", "matplotlib", "orbax"):
        assert package in blocked or importlib.util.find_spec(package) is None
    with launch(["tests/support/minimal_install.py", *sorted(blocked)], tmp_path) as job:
        assert "done" in job.succeed()
