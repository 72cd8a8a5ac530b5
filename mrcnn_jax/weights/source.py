"""Weights files and state dicts: detects their format and loads the tensors of the one network in them.

`load_weights` accepts a file or a state dict of torchvision, Detectron2, Detectron (2018) or EfficientNet-Lite. The
format is detected from the names of the tensors (`FORMATS`), not from the file name. The network may be nested in other
dictionaries and its names may share a prefix, as in training checkpoints. The result has one state dict, under the
names that its `Naming` expects, and the preprocessing that belongs to the weights.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights import caffe2_names, detectron2_names, efficientnet_names, preprocessing, torchvision_names
from mrcnn_jax.weights.io import weight_files
from mrcnn_jax.weights.naming import Naming, StateDict
from mrcnn_jax.weights.preprocessing import Preprocessing

log = logging.getLogger(__name__)

WeightsSource = str | os.PathLike[str] | Mapping[str, Any]  # a file, or a state dict (arrays or torch tensors)

# Tensors that only pretraining uses: heads, MoCo's second encoder and its queue.
_PRETRAINING_ONLY = re.compile(
    r"(?:.*\.)?(?:fc|head|projector|projection_head|predictor|prototypes|queue|queue_ptr|encoder_k|momentum_encoder)\..*"
    r"|(?:.*\.)?(?:queue|queue_ptr)"
)
# Inserted into names by torch.compile, FSDP and activation checkpointing, at any level.
_WRAPPER_NAMES = re.compile(r"_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_MAX_LISTED = 5  # names in a message


class WeightsFormat(NamedTuple):
    """A format of weights, and how to read it."""

    description: str
    marker: str  # pattern of a tensor name that only this format has, after an optional common prefix
    naming: Naming
    preprocessing: Callable[[StateDict, str], Preprocessing]  # of the converted state dict and `__author__`
    convert: Callable[[StateDict], StateDict] = dict  # to the names of `naming`


class _Tensors(NamedTuple):
    """A dictionary of tensors in a file."""

    keys: tuple[str | int, ...]  # from the top level of the file to the dictionary
    author: str  # `__author__` of the file
    tensors: dict[str, Any]

    def location(self, prefix: str = "") -> str:
        """Where the dictionary is, for a message."""
        location = f"under {'.'.join(map(str, self.keys))}" if self.keys else "at the top level"
        return _printable(f"{location} (prefix {prefix!r})" if prefix else location)


class _Network(NamedTuple):
    """A network in a dictionary of tensors."""

    source: _Tensors
    format: WeightsFormat
    prefix: str  # common to the names of the network

    def tensors(self) -> dict[str, Any]:
        """Return the network's tensors without the prefix, and without those that only pretraining uses."""
        tensors = self.source.tensors.items()
        network = {name.removeprefix(self.prefix): value for name, value in tensors if name.startswith(self.prefix)}
        if not self.format.naming.is_detector:
            network = {name: value for name, value in network.items() if not _PRETRAINING_ONLY.fullmatch(name)}
        return network

    def __str__(self) -> str:
        return self.source.location(self.prefix)


class LoadedWeights(NamedTuple):
    """Weights of a known format: a state dict under the names of `naming`."""

    label: str  # the name used in messages
    path: Path | None
    description: str  # of the format
    naming: Naming
    state: StateDict
    preprocessing: Preprocessing
    inferred: bool = False  # whether the preprocessing is a guess from the shapes


FORMATS = [
    WeightsFormat(
        "a torchvision detection model",
        "backbone.body.conv1.weight",
        torchvision_names.DETECTION,
        lambda *_: preprocessing.TORCHVISION,
        torchvision_names.update_names,
    ),
    WeightsFormat(
        "a Detectron2 model",
        "proposal_generator.rpn_head.objectness_logits.weight",
        detectron2_names.DETECTION,
        preprocessing.detectron2_preprocessing,
    ),
    WeightsFormat(
        "a Detectron (2018) model",
        "cls_score_w",
        detectron2_names.DETECTION,
        preprocessing.detectron_preprocessing,
        caffe2_names.to_detectron2,
    ),
    WeightsFormat(
        "a torchvision classifier",
        "layer1.0.conv1.weight",
        torchvision_names.CLASSIFIER,
        lambda *_: preprocessing.TORCHVISION,
    ),
    WeightsFormat(
        "a classifier under Detectron2's names",
        "res2.0.conv1.weight",
        detectron2_names.CLASSIFIER,
        preprocessing.detectron2_preprocessing,
    ),
    # Detectron2's copies of the MSRA and Caffe2 classifiers keep the batch norm statistics; Detectron's are fused.
    WeightsFormat(
        "a Caffe2 classifier of Detectron2",
        "res2_0_branch2a_bn_(rm|running_mean)",
        detectron2_names.CLASSIFIER,
        preprocessing.detectron2_preprocessing,
        caffe2_names.to_detectron2,
    ),
    WeightsFormat(
        "a Caffe2 classifier of Detectron (2018)",
        "res2_0_branch2a_w",
        detectron2_names.CLASSIFIER,
        preprocessing.detectron_preprocessing,
        caffe2_names.to_detectron2,
    ),
    WeightsFormat(
        "an EfficientNet-Lite classifier",
        "_blocks.0._depthwise_conv.weight",
        efficientnet_names.CLASSIFIER,
        lambda *_: preprocessing.EFFICIENTNET_LITE,
    ),
]


def load_weights(weights: WeightsSource, label: str = "") -> LoadedWeights:
    """Load the one network in a file or a state dict, whatever its format.

    The tensors may be nested in dictionaries and lists under any key, and their names may share a prefix (`module.` of
    DistributedDataParallel, `model.` of Lightning, `encoder_q.` of MoCo). The names of older versions are updated.

    Args:
      weights: a file (.pth, .pkl, .npz, .safetensors), or a state dict of arrays or torch tensors.
      label: the name of the weights in messages; by default the path of the file.

    Raises WeightsError if the file is damaged or contains anything but arrays and plain values, if the format is
    unknown, or if there is more than one network.
    """
    path = None if isinstance(weights, Mapping) else Path(weights)
    label = label or ("the state dict" if path is None else os.fspath(path))
    content = weights if path is None else weight_files.read(path)
    network = _select_network(list(_find_tensors(content)), content, label)
    tensors, format = network.tensors(), network.format
    unused = network.source.tensors.keys() - {network.prefix + name for name in tensors}
    if network.source.keys or network.prefix or unused:
        log.info("%s: read %s%s", label, network, f"; not used: {_listed(unused)}" if unused else "")
    state = format.convert({name: _to_numpy(value) for name, value in tensors.items()})
    author = network.source.author
    processing = format.preprocessing(state, author)
    guesses = format.preprocessing is preprocessing.detectron2_preprocessing
    inferred = guesses and not preprocessing.states_preprocessing(state, author)
    return LoadedWeights(label, path, format.description, format.naming, state, processing, inferred)


def _find_tensors(content: Any, keys: tuple[str | int, ...] = (), author: str = "") -> Iterator[_Tensors]:
    """Yield every dictionary of tensors in the content of a file."""
    if isinstance(content, Mapping):
        author = str(content.get("__author__", author))
        entries = [(name if type(name) is int else str(name), value) for name, value in content.items()]
    elif isinstance(content, list | tuple):
        entries = list(enumerate(content))
    else:
        return
    tensors = {_WRAPPER_NAMES.sub("", str(name)): value for name, value in entries if _is_tensor(value)}
    if tensors:
        yield _Tensors(keys, author, tensors)
    for name, value in entries:
        if not _is_tensor(value):
            yield from _find_tensors(value, (*keys, name), author)


def _find_networks(source: _Tensors) -> list[_Network]:
    """Return the networks in a dictionary: those of the first known format, one for each prefix."""
    for format in FORMATS:
        matches = [re.fullmatch(rf"(.*[./])?(?:{format.marker})", name) for name in source.tensors]
        prefixes = {match[1] or "" for match in matches if match}
        if prefixes:
            prefixes = {name for name in prefixes if not _PRETRAINING_ONLY.fullmatch(name)} or prefixes
            return [_Network(source, format, prefix) for prefix in sorted(prefixes)]
    return []


def _select_network(sources: list[_Tensors], content: Any, label: str) -> _Network:
    """Return the only network of a file.

    Raises WeightsError if there is none, if there are several different ones, or if it is part of an unknown network.
    """
    networks: list[_Network] = []
    for network in (network for source in sources for network in _find_networks(source)):
        if not any(_is_same_network(network, other) for other in networks):
            networks.append(network)
    if len(networks) > 1:
        locations = "; ".join(map(str, networks))
        advice = _advice(networks[0], whole=len({network.source.keys for network in networks}) == len(networks))
        raise WeightsError(f"{label} contains more than one set of weights: {locations}. {advice}")
    if not networks:
        descriptions = ", ".join(format.description for format in FORMATS)
        raise WeightsError(f"{label} {_describe_unknown(sources, content)}; known formats: {descriptions}")
    (network,) = networks
    if others := _unrelated_tensors(network):
        raise WeightsError(
            f"{label} contains {network.format.description} {network} and other tensors: {_listed(others)}."
            f" {_advice(network, whole=False)}"
        )
    return network


def _unrelated_tensors(network: _Network) -> list[str]:
    """Names of tensors outside of the network's prefix, except for scalars and those of pretraining."""
    return [
        name
        for name, value in network.source.tensors.items()
        if not name.startswith(network.prefix)
        and (network.format.naming.is_detector or not _PRETRAINING_ONLY.fullmatch(name))
        and value.ndim
    ]


def _is_same_network(first: _Network, second: _Network) -> bool:
    a, b = first.tensors(), second.tensors()
    return a.keys() == b.keys() and all(np.array_equal(_to_numpy(a[name]), _to_numpy(b[name])) for name in a)


def _describe_unknown(sources: list[_Tensors], content: Any) -> str:
    if not sources:
        if isinstance(content, Mapping):
            return "has an unknown format: it contains no tensors"
        return f"contains a {type(content).__name__}, not a state dict"
    largest = max(sources, key=lambda source: len(source.tensors))
    location = f" {largest.location()}" if largest.keys else ""
    return f"has an unknown format: it contains {_listed(largest.tensors)}{location}"


def _advice(network: _Network, *, whole: bool) -> str:
    """How to save one network in a file of its own: the `whole` dictionary, or the names with its prefix."""
    expression = "torch.load(FILE)" + "".join(f"[{key!r}]" for key in network.source.keys)
    if not whole:
        expression = f"{{k: v for k, v in {expression}.items() if k.startswith({network.prefix!r})}}"
    return f"Save only the weights to use, for example: torch.save({_printable(expression)}, NEW)"


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return _printable(", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else ""))


def _printable(text: str) -> str:
    return ascii(text)[1:-1]


def _is_tensor(value: Any) -> bool:
    """Whether `value` is an array or a torch tensor; torch is not imported."""
    return hasattr(value, "detach") or hasattr(value, "__array__")


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)
