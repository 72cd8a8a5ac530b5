"""Conversion between our variables and the state dicts of other projects.

A `Naming` holds a project's rules: the name of each module of ours in its state dicts, and the position of the
background class in its heads. `convert_state` turns a state dict into variables and `export_state` does the reverse;
both change the layout of kernels, from OIHW (torch) to HWIO (Flax) and back. Names and shapes are compared completely
before anything is used: one WeightsError lists every missing, unexpected and wrongly shaped tensor.

The tables of names are in `torchvision_names`, `detectron2_names` and `efficientnet_names`; `FLAX` is our own naming.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.models.mask_rcnn import MaskRCNN, Variables, variable_shapes

VariablePath = tuple[str, ...]  # collection, modules, name
FlatVariables = dict[VariablePath, np.ndarray]
StateDict = Mapping[str, np.ndarray]
# Pattern of our module's path, and a function from the numbers in the path to the name of the module in the project.
Rules = list[tuple[str, Callable[..., str]]]
RowTransform = Callable[[np.ndarray], np.ndarray]  # changes the first axis, that of the outputs

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_BLOCK = re.compile(r"\b(?:res|layer)\d[./](?:block)?\d+[./]conv\d[./](?:weight|kernel)$")
_STATISTICS = re.compile(r"(?:[./]running_mean|norm\d?/mean)$")


class Architecture(NamedTuple):
    """Properties of a network that names and layouts depend on."""

    pyramid: bool
    rpn_convs: int
    box_convs: int
    channels: int  # F of the map (S, S, F) that the first fully connected layer reads; 0 if there is none


@dataclass(frozen=True)
class Naming:
    """Names and layouts of a project's state dicts.

    `import_rows` and `export_rows` move, drop or add the background rows of a module, by the module's path.
    """

    project: str
    rules: Callable[[Architecture], Rules]
    import_rows: Mapping[str, RowTransform] = field(default_factory=dict)
    export_rows: Mapping[str, RowTransform] = field(default_factory=dict)
    # Tensors that have no counterpart here and are not needed, such as a counter in torch's batch norm.
    ignored: re.Pattern[str] = re.compile(r"num_batches_tracked$")
    class_scores: str = ""  # name of the bias of the class scores, background included

    @property
    def is_detector(self) -> bool:
        """Whether it names a whole detection model; otherwise only the backbone of a classifier."""
        return bool(self.class_scores)

    def names(self, paths: Iterable[VariablePath], network: Architecture) -> dict[VariablePath, str]:
        """Return the project's name of each variable. Raises WeightsError if the project has no such module."""
        rules = [(re.compile(pattern), name) for pattern, name in self.rules(network)]
        return {path: f"{self._module_name(module_of(path), rules)}.{_LEAVES[path[-1]]}" for path in paths}

    def to_flax(self, path: VariablePath, value: np.ndarray, network: Architecture) -> np.ndarray:
        """Convert a tensor of the project to our layout. A tensor with an unexpected rank keeps its shape."""
        module = module_of(path)
        value = self.import_rows.get(module, np.asarray)(value) if value.ndim else value
        if path[-1] != "kernel":
            return value
        if value.ndim == 4:
            return value.transpose(2, 3, 0, 1) if module.endswith("/deconv") else value.transpose(2, 3, 1, 0)
        side = _map_side(value.shape[-1], network) if module == "box_head/fc1" else 0
        if side and value.ndim == 2:
            return value.reshape(len(value), -1, side, side).transpose(2, 3, 1, 0).reshape(-1, len(value))
        return value.T

    def from_flax(self, path: VariablePath, value: np.ndarray, network: Architecture) -> np.ndarray:
        """Convert one of our variables to the project's layout, contiguous; the inverse of `to_flax`."""
        module = module_of(path)
        if value.ndim == 4:
            value = value.transpose(2, 3, 0, 1) if module.endswith("/deconv") else value.transpose(3, 2, 0, 1)
        elif module == "box_head/fc1" and value.ndim == 2:
            side, outputs = _map_side(len(value), network), value.shape[1]
            value = value.reshape(side, side, -1, outputs).transpose(3, 2, 0, 1).reshape(outputs, -1)
        elif value.ndim == 2:
            value = value.T
        return np.ascontiguousarray(self.export_rows.get(module, np.asarray)(value))

    def _module_name(self, module: str, rules: Iterable[tuple[re.Pattern[str], Callable[..., str]]]) -> str:
        for pattern, name in rules:
            if match := pattern.fullmatch(module):
                return name(*map(int, match.groups()))
        raise WeightsError(f"{self.project} has no counterpart of {module}")


class FlaxNaming(Naming):
    """Names and layouts of our own variables. Batch norm has the same names whether it is frozen or not."""

    def names(self, paths: Iterable[VariablePath], network: Architecture) -> dict[VariablePath, str]:
        return {path: f"{module_of(path)}/{path[-1]}" for path in paths}

    def to_flax(self, path: VariablePath, value: np.ndarray, network: Architecture) -> np.ndarray:
        return value

    def from_flax(self, path: VariablePath, value: np.ndarray, network: Architecture) -> np.ndarray:
        return value


FLAX = FlaxNaming("mrcnn_jax", lambda _: [])


def module_of(path: VariablePath) -> str:
    """Return the module of a variable: `backbone/stem/norm` of `params/backbone/stem/norm/norm/scale`."""
    return re.sub(r"(norm\d?)/norm$", r"\1", "/".join(path[1:-1]))


def architecture_of(shapes: Mapping[VariablePath, tuple[int, ...]]) -> Architecture:
    """Return the architecture of a network from the shapes of its variables or of their gradients."""
    modules = {module_of(path): shape for path, shape in shapes.items() if path[-1] == "kernel"}
    box_convs = [module for module in modules if module.startswith("box_head/conv")]
    channels = modules.get("rpn_head/conv1", (0, 0, 0, 0))[2]
    if box_convs:
        channels = modules[box_convs[0]][3]
    return Architecture(
        pyramid=any(module.startswith("fpn/") for module in modules),
        rpn_convs=sum(module.startswith("rpn_head/conv") for module in modules),
        box_convs=len(box_convs),
        channels=channels,
    )


def flat_shapes(model: MaskRCNN) -> dict[VariablePath, tuple[int, ...]]:
    """Return the shapes of all variables of a model, by path."""
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(variable_shapes(model)).items()}


def convert_state(
    naming: Naming, shapes: Mapping[VariablePath, tuple[int, ...]], state: StateDict, *, source: str = ""
) -> FlatVariables:
    """Convert a state dict to the variables `shapes`, in float32.

    Args:
      shapes: paths and shapes of the variables that `state` must have, no more and no less.
      source: the name of the weights in the message of an error.

    Raises WeightsError that lists every missing, unexpected, wrongly shaped and non-finite tensor.
    """
    network = architecture_of(shapes)
    names = naming.names(shapes, network)
    missing = sorted(set(names.values()) - set(state))
    unexpected = sorted(name for name in set(state) - set(names.values()) if not naming.ignored.search(name))
    problems = [f"missing: {name}" for name in missing] + [f"unexpected: {name}" for name in unexpected]
    variables: FlatVariables = {}
    for path in (path for path in shapes if names[path] in state):
        value = naming.to_flax(path, state[names[path]], network)
        if value.shape == shapes[path] and value.dtype.kind == "f":
            with np.errstate(over="ignore"):  # float64 values that overflow are reported as not finite
                variables[path] = np.array(value, np.float32, order="C")
            if not np.isfinite(variables[path]).all():
                problems.append(f"not finite: {names[path]} contains NaN or infinity")
        else:
            problems.append(f"shape: {_describe_mismatch(names[path], state[names[path]], value, shapes[path])}")
    if problems:
        prefix = f"{source}: " if source else ""
        raise WeightsError(
            "\n  ".join([f"{prefix}these weights do not fit the model:", *problems, *_advice(missing, unexpected)])
        )
    return variables


def import_state(naming: Naming, model: MaskRCNN, state: StateDict, *, source: str = "") -> Variables:
    """Convert a state dict to all variables of `model`. Raises WeightsError as `convert_state` does."""
    return flax.traverse_util.unflatten_dict(convert_state(naming, flat_shapes(model), state, source=source))


def export_state(naming: Naming, tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert `tree` (`{collection: ...}`, variables or gradients) to a state dict of the project."""
    leaves = {
        path: np.asarray(leaf) for path, leaf in flax.traverse_util.flatten_dict(jax.device_get(dict(tree))).items()
    }
    network = architecture_of({path: leaf.shape for path, leaf in leaves.items()})
    names = naming.names(leaves, network)
    return {names[path]: naming.from_flax(path, leaf, network) for path, leaf in leaves.items()}


def _map_side(inputs: int, network: Architecture) -> int:
    """Side S of the (S, S, channels) map that a layer with `inputs` inputs reads; 0 if no S fits."""
    side = math.isqrt(inputs // network.channels) if network.channels else 0
    return side if side * side * network.channels == inputs else 0


def _advice(missing: Sequence[str], unexpected: Sequence[str]) -> list[str]:
    """Which field to change if only the model or only the weights have several blocks or norms."""
    for what, pattern, advice in (
        ("blocks of the backbone", _BLOCK, "set model.backbone.name to the depth of the weights"),
        (
            "statistics of batch norm",
            _STATISTICS,
            "set model.backbone.norm, or the norm of the head, as in the file",
        ),
    ):
        for side, names in (("the model has", missing), ("the weights have", unexpected)):
            if sum(1 for name in names if pattern.search(name)) > 1:
                return [f"only {side} these {what}: {advice}"]
    return []


def _describe_mismatch(name: str, tensor: np.ndarray, value: np.ndarray, shape: tuple[int, ...]) -> str:
    if value.dtype.kind != "f":
        return f"{name} contains {value.dtype}, not floating-point numbers"
    return f"{name} is {tensor.shape}, which gives {value.shape}, not {shape}"
