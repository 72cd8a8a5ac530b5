"""One engine for everybody's weights: our variables under another project's names and layouts, there and back.

A `Naming` says what a project calls our modules, and where it keeps the background class. Names and shapes are compared
completely before anything is used: what is missing, unexpected or wrongly shaped is listed in one error.
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

Path = tuple[str, ...]  # of a variable: its collection, modules, name
Flat = dict[Path, np.ndarray]
State = Mapping[str, np.ndarray]
Rules = list[tuple[str, Callable[..., str]]]  # pattern of our module's path; the peer's name from the pattern's numbers
Rows = Callable[[np.ndarray], np.ndarray]  # acts on the first axis, that of the outputs

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_BLOCK = re.compile(r"\b(?:res|layer)\d[./](?:block)?\d+[./]conv\d[./](?:weight|kernel)$")
_STATISTICS = re.compile(r"(?:[./]running_mean|norm\d?/mean)$")
_IGNORED = re.compile(r"num_batches_tracked$")  # a counter that torch's batch norm keeps and never uses


class Network(NamedTuple):
    """What names and layouts depend on."""

    pyramid: bool
    shared_res5: bool  # C4
    rpn_convs: int
    box_convs: int
    channels: int  # F of the map (S, S, F) that the first fully connected layer reads; 0 where there is none


@dataclass(frozen=True)
class Naming:
    """How a project names and lays out what we have; `rows_in` and `rows_out` move its background class, by module."""

    peer: str
    rules: Callable[[Network], Rules]
    rows_in: Mapping[str, Rows] = field(default_factory=dict)
    rows_out: Mapping[str, Rows] = field(default_factory=dict)
    ignored: re.Pattern[str] = _IGNORED  # names without a counterpart here, and without a meaning
    class_scores: str = ""  # the bias of the class scores, background included

    def names(self, paths: Iterable[Path], network: Network) -> dict[Path, str]:
        """The peer's name of each of our variables. Raises WeightsError for one that the peer cannot have."""
        rules = [(re.compile(pattern), name) for pattern, name in self.rules(network)]
        return {path: f"{self._module_name(module_of(path), rules)}.{_LEAVES[path[-1]]}" for path in paths}

    def to_ours(self, path: Path, value: np.ndarray, network: Network) -> np.ndarray:
        """A peer's tensor in our layout. One with the wrong number of axes is returned as it is."""
        module = module_of(path)
        value = self.rows_in.get(module, _same)(value) if value.ndim else value
        if path[-1] != "kernel":
            return value
        if value.ndim == 4:
            return value.transpose(2, 3, 0, 1) if module.endswith("/deconv") else value.transpose(2, 3, 1, 0)
        side = _side(value.shape[-1], network) if module == "box_head/fc1" else 0
        if side and value.ndim == 2:
            return value.reshape(len(value), -1, side, side).transpose(2, 3, 1, 0).reshape(-1, len(value))
        return value.T

    def to_peer(self, path: Path, value: np.ndarray, network: Network) -> np.ndarray:
        """The inverse of `to_ours`, contiguous."""
        module = module_of(path)
        if value.ndim == 4:
            value = value.transpose(2, 3, 0, 1) if module.endswith("/deconv") else value.transpose(3, 2, 0, 1)
        elif module == "box_head/fc1" and value.ndim == 2:
            side, outputs = _side(len(value), network), value.shape[1]
            value = value.reshape(side, side, -1, outputs).transpose(3, 2, 0, 1).reshape(outputs, -1)
        elif value.ndim == 2:
            value = value.T
        return np.ascontiguousarray(self.rows_out.get(module, _same)(value))

    def _module_name(self, module: str, rules: Iterable[tuple[re.Pattern[str], Callable[..., str]]]) -> str:
        for pattern, name in rules:
            if found := pattern.fullmatch(module):
                return name(*map(int, found.groups()))
        raise WeightsError(f"{self.peer} has no counterpart of {module}")


class OwnNaming(Naming):
    """Our own names and layouts. Batch norm has the same names whether it is frozen or not."""

    def names(self, paths: Iterable[Path], network: Network) -> dict[Path, str]:
        return {path: f"{module_of(path)}/{path[-1]}" for path in paths}

    def to_ours(self, path: Path, value: np.ndarray, network: Network) -> np.ndarray:
        return value


OURS = OwnNaming("mrcnn_jax", lambda _: [])


def module_of(path: Path) -> str:
    """`params/backbone/stem/norm/norm/scale` is of the module `backbone/stem/norm`."""
    return re.sub(r"(norm\d?)/norm$", r"\1", "/".join(path[1:-1]))


def describe(shapes: Mapping[Path, tuple[int, ...]]) -> Network:
    """The network that variables of these shapes (or their gradients) belong to."""
    modules = {module_of(path): shape for path, shape in shapes.items() if path[-1] == "kernel"}
    box_convs = [module for module in modules if module.startswith("box_head/conv")]
    channels = modules.get("rpn_head/conv1", (0, 0, 0, 0))[2]
    if box_convs:
        channels = modules[box_convs[0]][3]
    return Network(
        pyramid=any(module.startswith("fpn/") for module in modules),
        shared_res5=any(module.startswith("res5/") for module in modules),
        rpn_convs=sum(module.startswith("rpn_head/conv") for module in modules),
        box_convs=len(box_convs),
        channels=channels,
    )


def template(model: MaskRCNN) -> dict[Path, tuple[int, ...]]:
    """Paths and shapes of all variables of a model."""
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(variable_shapes(model)).items()}


def match(naming: Naming, shapes: Mapping[Path, tuple[int, ...]], state: State, *, source: str = "") -> Flat:
    """The variables `shapes`, float32, out of a peer's `state`.

    Raises WeightsError that lists every missing, unexpected and wrongly shaped tensor.
    """
    network = describe(shapes)
    names = naming.names(shapes, network)
    missing = sorted(set(names.values()) - set(state))
    unexpected = sorted(name for name in set(state) - set(names.values()) if not naming.ignored.search(name))
    problems = [f"missing: {name}" for name in missing] + [f"unexpected: {name}" for name in unexpected]
    variables: Flat = {}
    for path in (path for path in shapes if names[path] in state):
        value = naming.to_ours(path, state[names[path]], network)
        if value.shape == shapes[path] and value.dtype.kind == "f":
            with np.errstate(over="ignore"):  # of float64: found in the next line
                variables[path] = np.array(value, np.float32, order="C")
            if not np.isfinite(variables[path]).all():
                problems.append(f"not finite: {names[path]} holds NaN or infinity")
        else:
            problems.append(f"shape: {_complaint(names[path], state[names[path]], value, shapes[path])}")
    if problems:
        where = f"{source}: " if source else ""
        raise WeightsError(
            "\n  ".join([f"{where}these weights do not fit the model:", *problems, *_advice(missing, unexpected)])
        )
    return variables


def import_state(naming: Naming, model: MaskRCNN, state: State) -> Variables:
    """All variables of `model`, or WeightsError with the list of what does not fit."""
    return flax.traverse_util.unflatten_dict(match(naming, template(model), state))


def export_state(naming: Naming, tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of `tree` (`{collection: ...}`, variables or gradients) under the peer's names, in its layouts."""
    leaves = {
        path: np.asarray(leaf) for path, leaf in flax.traverse_util.flatten_dict(jax.device_get(dict(tree))).items()
    }
    network = describe({path: leaf.shape for path, leaf in leaves.items()})
    names = naming.names(leaves, network)
    return {names[path]: naming.to_peer(path, leaf, network) for path, leaf in leaves.items()}


def _same(value: np.ndarray) -> np.ndarray:
    return value


def _side(inputs: int, network: Network) -> int:
    """Side S of the map that a layer with this many inputs reads; 0 if it is no square of `network.channels`."""
    side = math.isqrt(inputs // network.channels) if network.channels else 0
    return side if side * side * network.channels == inputs else 0


def _advice(missing: Sequence[str], unexpected: Sequence[str]) -> list[str]:
    """What to change where whole blocks or norms are on one side only."""
    for what, pattern, advice in (
        ("blocks of the backbone", _BLOCK, "set model.backbone.name to the depth of the weights"),
        (
            "statistics of batch norm",
            _STATISTICS,
            "set model.backbone.norm, or the head's norm, as the weights have it",
        ),
    ):
        for side, names in (("the model has", missing), ("the weights have", unexpected)):
            if sum(1 for name in names if pattern.search(name)) > 1:
                return [f"only {side} these {what}: {advice}"]
    return []


def _complaint(name: str, theirs: np.ndarray, value: np.ndarray, shape: tuple[int, ...]) -> str:
    if value.dtype.kind != "f":
        return f"{name} holds {value.dtype}, not floating-point numbers"
    return f"{name} is {theirs.shape}, which gives {value.shape}, not {shape}"
