"""The tensors of a weights file, or of a state dict in memory, and what kind of network they are of."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights import caffe2_names, detectron2_names, efficientnet_names, preprocessing, torchvision_names
from mrcnn_jax.weights.io import weight_files
from mrcnn_jax.weights.naming import Naming, State
from mrcnn_jax.weights.preprocessing import Preprocessing

log = logging.getLogger(__name__)

Weights = str | os.PathLike[str] | Mapping[str, Any]  # a file, or a state dict (arrays or torch tensors)

# What pretraining keeps beside a backbone: heads of its own, and MoCo's second encoder and queue.
_PRETRAINING = re.compile(
    r"(?:.*\.)?(?:fc|head|projector|projection_head|predictor|prototypes|queue|queue_ptr|encoder_k|momentum_encoder)\..*"
    r"|(?:.*\.)?(?:queue|queue_ptr)"
)
# What torch.compile, FSDP and checkpointed modules put into names, anywhere.
_TRANSPARENT = re.compile(r"_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_SHOWN = 5  # names in a message


class Kind(NamedTuple):
    """A kind of weights: who writes it, and how it is read."""

    description: str
    format: Literal["torchvision", "detectron2", "efficientnet"]
    whole: bool  # a whole detection model; else the residual network of a classifier
    mark: str  # the name of a tensor by which it is known, after a prefix that all may have
    naming: Naming
    convert: Callable[[State], State]  # to the names of `naming`
    preprocessing: Callable[
        [State, str], Preprocessing
    ]  # of the converted state, and of the author that its file names


class _Place(NamedTuple):
    """A dictionary of tensors in a file, and what network it is of."""

    keys: tuple[str | int, ...]  # from the whole content to the dictionary
    author: str  # what the file says about its origin
    tensors: dict[str, Any]
    kind: Kind | None
    prefix: str = ""  # what the names of the network begin with

    def network(self) -> dict[str, Any]:
        """The tensors of the network under its own names; those of a pretraining are left out of a classifier."""
        named = {
            name.removeprefix(self.prefix): value
            for name, value in self.tensors.items()
            if name.startswith(self.prefix)
        }
        if self.kind is not None and not self.kind.whole:
            named = {name: value for name, value in named.items() if not _PRETRAINING.fullmatch(name)}
        return named

    def __str__(self) -> str:
        under = f"under {'.'.join(map(str, self.keys))}" if self.keys else "at the top"
        return _printable(f"{under} (names after {self.prefix!r})" if self.prefix else under)


class Source(NamedTuple):
    """Weights of a known kind: a state dict under the names of `kind.naming`."""

    label: str  # what messages call it
    path: Path | None
    kind: Kind
    state: State
    preprocessing: Preprocessing


def _unchanged(state: State) -> State:
    return state


def _torchvision(state: State, author: str) -> Preprocessing:
    return preprocessing.TORCHVISION


def _efficientnet(state: State, author: str) -> Preprocessing:
    return preprocessing.EFFICIENTNET_LITE


def _detectron(state: State, author: str) -> Preprocessing:
    return preprocessing.of_detectron(state)


KINDS = [
    Kind(
        "a torchvision detection model",
        "torchvision",
        True,
        "backbone.body.conv1.weight",
        torchvision_names.DETECTION,
        torchvision_names.with_new_names,
        _torchvision,
    ),
    Kind(
        "a Detectron2 model",
        "detectron2",
        True,
        "proposal_generator.rpn_head.objectness_logits.weight",
        detectron2_names.DETECTION,
        _unchanged,
        preprocessing.of_detectron2,
    ),
    Kind(
        "a Detectron (2018) model",
        "detectron2",
        True,
        "cls_score_w",
        detectron2_names.DETECTION,
        caffe2_names.to_detectron2,
        _detectron,
    ),
    Kind(
        "a torchvision classifier",
        "torchvision",
        False,
        "layer1.0.conv1.weight",
        torchvision_names.CLASSIFIER,
        _unchanged,
        _torchvision,
    ),
    Kind(
        "a classifier under Detectron2's names",
        "detectron2",
        False,
        "res2.0.conv1.weight",
        detectron2_names.CLASSIFIER,
        _unchanged,
        preprocessing.of_detectron2,
    ),
    # Detectron2's copies of MSRA's and Caffe2's classifiers have statistics; in Detectron's they are fused.
    Kind(
        "a Caffe2 classifier of Detectron2",
        "detectron2",
        False,
        "res2_0_branch2a_bn_(rm|running_mean)",
        detectron2_names.CLASSIFIER,
        caffe2_names.to_detectron2,
        preprocessing.of_detectron2,
    ),
    Kind(
        "a Caffe2 classifier of Detectron (2018)",
        "detectron2",
        False,
        "res2_0_branch2a_w",
        detectron2_names.CLASSIFIER,
        caffe2_names.to_detectron2,
        _detectron,
    ),
    Kind(
        "an EfficientNet-Lite classifier",
        "efficientnet",
        False,
        "_blocks.0._depthwise_conv.weight",
        efficientnet_names.CLASSIFIER,
        _unchanged,
        _efficientnet,
    ),
]


def detect_format(weights: Weights, label: str = "") -> Source:
    """Read a file (or take a state dict), find out whose it is, and bring its names up to date.

    The state dict may lie in other dictionaries, under any key, and all its names may have one prefix (`module.` of
    DistributedDataParallel, `model.` of Lightning, `encoder_q.` of MoCo).
    Messages call the weights `label`; by default a file by its path.
    Raises WeightsError for a file that cannot be read safely, for names that no known kind of network has, and where
    there are several networks to choose from.
    """
    path = None if isinstance(weights, Mapping) else Path(weights)
    label = label or ("the state dict" if path is None else os.fspath(path))
    content = weights if path is None else weight_files.read(path)
    place, kind = _only_network(list(_places(content)), content, label)
    network = place.network()
    left_out = place.tensors.keys() - {place.prefix + name for name in network}
    if place.keys or place.prefix or left_out:
        log.info("%s: read %s%s", label, place, f"; left out: {_listed(left_out)}" if left_out else "")
    state = kind.convert({name: _array(value) for name, value in network.items()})
    return Source(label, path, kind, state, kind.preprocessing(state, place.author))


def _places(content: Any, keys: tuple[str | int, ...] = (), author: str = "") -> Iterator[_Place]:
    """All dictionaries of tensors in the content of a file; one that holds several networks comes several times."""
    if isinstance(content, Mapping):
        author = str(content.get("__author__", author))
        entries = [(name if type(name) is int else str(name), value) for name, value in content.items()]
    elif isinstance(content, list | tuple):
        entries = list(enumerate(content))
    else:
        return
    tensors = {_TRANSPARENT.sub("", str(name)): value for name, value in entries if _is_tensor(value)}
    if tensors:
        kind, prefixes = _network(tensors)
        yield from (_Place(keys, author, tensors, kind, prefix) for prefix in prefixes)
    for name, value in entries:
        if not _is_tensor(value):
            yield from _places(value, (*keys, name), author)


def _network(names: Iterable[str]) -> tuple[Kind | None, list[str]]:
    """The kind of network that has these tensors, and the prefixes under which there is one."""
    for kind in KINDS:
        matches = [re.fullmatch(rf"(.*[./])?(?:{kind.mark})", name) for name in names]
        prefixes = {match[1] or "" for match in matches if match}
        if prefixes:
            return kind, sorted({prefix for prefix in prefixes if not _PRETRAINING.fullmatch(prefix)} or prefixes)
    return None, [""]


def _only_network(places: list[_Place], content: Any, label: str) -> tuple[_Place, Kind]:
    """The one network of a file. Raises WeightsError if there is none, or several, or others' tensors beside it."""
    known: list[tuple[_Place, Kind]] = []
    for place in places:
        if place.kind is not None and not any(_equal(place, other) for other, _ in known):
            known.append((place, place.kind))
    if len(known) > 1:
        where = "; ".join(str(place) for place, _ in known)
        advice = _advice(known[0][0], whole=len({place.keys for place, _ in known}) == len(known))
        raise WeightsError(f"{label} holds more than one set of weights: {where}. {advice}")
    if not known:
        kinds = ", ".join(kind.description for kind in KINDS)
        raise WeightsError(f"{label} {_unknown(places, content)}; known are {kinds}")
    place, kind = known[0]
    others = [
        name
        for name, value in place.tensors.items()
        if not (name.startswith(place.prefix) or (not kind.whole and _PRETRAINING.fullmatch(name)) or not value.ndim)
    ]
    if others:
        raise WeightsError(
            f"{label} holds {kind.description} {place}, and other tensors beside it: {_listed(others)}."
            f" {_advice(place, whole=False)}"
        )
    return place, kind


def _equal(first: _Place, second: _Place) -> bool:
    """Whether it is the same network twice."""
    a, b = first.network(), second.network()
    return a.keys() == b.keys() and all(np.array_equal(_array(a[name]), _array(b[name])) for name in a)


def _unknown(places: list[_Place], content: Any) -> str:
    if not places:
        return (
            "is of no known kind: it holds no tensors"
            if isinstance(content, Mapping)
            else f"holds a {type(content).__name__}, not a state dict"
        )
    largest = max(places, key=lambda place: len(place.tensors))
    under = f" {largest}" if largest.keys else ""
    return f"is of no known kind: it holds {_listed(largest.tensors)}{under}"


def _advice(place: _Place, *, whole: bool) -> str:
    """How to save one of several networks alone: a `whole` dictionary, or what has its prefix."""
    inner = "torch.load(FILE)" + "".join(f"[{key!r}]" for key in place.keys)
    if not whole:
        inner = f"{{k: v for k, v in {inner}.items() if k.startswith({place.prefix!r})}}"
    return f"Save the one to use alone, such as: torch.save({_printable(inner)}, NEW)"


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return _printable(", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else ""))


def _printable(text: str) -> str:
    return ascii(text)[1:-1]


def _is_tensor(value: Any) -> bool:
    """Whether it is an array or a tensor of torch, which is not imported for this."""
    return hasattr(value, "detach") or hasattr(value, "__array__")


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)
