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
from typing import Any, Literal, NamedTuple

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
    """A format of weights: the project that writes it, and how to read it."""

    description: str
    origin: Literal["torchvision", "detectron2", "efficientnet"]
    is_detector: bool  # a whole detection model; otherwise the backbone of a classifier
    marker: str  # pattern of a tensor name that only this format has, after an optional common prefix
    naming: Naming
    convert: Callable[[StateDict], StateDict]  # to the names of `naming`
    preprocessing: Callable[[StateDict, str], Preprocessing]  # of the converted state dict and `__author__`


class _Candidate(NamedTuple):
    """A dictionary of tensors in a file, with the network detected in it."""

    keys: tuple[str | int, ...]  # from the top level of the file to the dictionary
    author: str  # `__author__` of the file
    tensors: dict[str, Any]
    format: WeightsFormat | None
    prefix: str = ""  # common to the names of the network

    def network(self) -> dict[str, Any]:
        """Return the network's tensors without the prefix, and without those that only pretraining uses."""
        network = {
            name.removeprefix(self.prefix): value
            for name, value in self.tensors.items()
            if name.startswith(self.prefix)
        }
        if self.format is not None and not self.format.is_detector:
            network = {name: value for name, value in network.items() if not _PRETRAINING_ONLY.fullmatch(name)}
        return network

    def __str__(self) -> str:
        location = f"under {'.'.join(map(str, self.keys))}" if self.keys else "at the top level"
        return _printable(f"{location} (prefix {self.prefix!r})" if self.prefix else location)


class LoadedWeights(NamedTuple):
    """Weights of a known format: a state dict under the names of `format.naming`."""

    label: str  # the name used in messages
    path: Path | None
    format: WeightsFormat
    state: StateDict
    preprocessing: Preprocessing


def _identity(state: StateDict) -> StateDict:
    return state


FORMATS = [
    WeightsFormat(
        "a torchvision detection model",
        "torchvision",
        True,
        "backbone.body.conv1.weight",
        torchvision_names.DETECTION,
        torchvision_names.update_names,
        lambda state, author: preprocessing.TORCHVISION,
    ),
    WeightsFormat(
        "a Detectron2 model",
        "detectron2",
        True,
        "proposal_generator.rpn_head.objectness_logits.weight",
        detectron2_names.DETECTION,
        _identity,
        preprocessing.detectron2_preprocessing,
    ),
    WeightsFormat(
        "a Detectron (2018) model",
        "detectron2",
        True,
        "cls_score_w",
        detectron2_names.DETECTION,
        caffe2_names.to_detectron2,
        lambda state, author: preprocessing.detectron_preprocessing(state),
    ),
    WeightsFormat(
        "a torchvision classifier",
        "torchvision",
        False,
        "layer1.0.conv1.weight",
        torchvision_names.CLASSIFIER,
        _identity,
        lambda state, author: preprocessing.TORCHVISION,
    ),
    WeightsFormat(
        "a classifier under Detectron2's names",
        "detectron2",
        False,
        "res2.0.conv1.weight",
        detectron2_names.CLASSIFIER,
        _identity,
        preprocessing.detectron2_preprocessing,
    ),
    # Detectron2's copies of the MSRA and Caffe2 classifiers keep the batch norm statistics; Detectron's are fused.
    WeightsFormat(
        "a Caffe2 classifier of Detectron2",
        "detectron2",
        False,
        "res2_0_branch2a_bn_(rm|running_mean)",
        detectron2_names.CLASSIFIER,
        caffe2_names.to_detectron2,
        preprocessing.detectron2_preprocessing,
    ),
    WeightsFormat(
        "a Caffe2 classifier of Detectron (2018)",
        "detectron2",
        False,
        "res2_0_branch2a_w",
        detectron2_names.CLASSIFIER,
        caffe2_names.to_detectron2,
        lambda state, author: preprocessing.detectron_preprocessing(state),
    ),
    WeightsFormat(
        "an EfficientNet-Lite classifier",
        "efficientnet",
        False,
        "_blocks.0._depthwise_conv.weight",
        efficientnet_names.CLASSIFIER,
        _identity,
        lambda state, author: preprocessing.EFFICIENTNET_LITE,
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
    candidate, format = _select_candidate(list(_find_candidates(content)), content, label)
    network = candidate.network()
    unused = candidate.tensors.keys() - {candidate.prefix + name for name in network}
    if candidate.keys or candidate.prefix or unused:
        log.info("%s: read %s%s", label, candidate, f"; not used: {_listed(unused)}" if unused else "")
    state = format.convert({name: _to_numpy(value) for name, value in network.items()})
    return LoadedWeights(label, path, format, state, format.preprocessing(state, candidate.author))


def _find_candidates(content: Any, keys: tuple[str | int, ...] = (), author: str = "") -> Iterator[_Candidate]:
    """Yield every dictionary of tensors in the content of a file, once for each network in it."""
    if isinstance(content, Mapping):
        author = str(content.get("__author__", author))
        entries = [(name if type(name) is int else str(name), value) for name, value in content.items()]
    elif isinstance(content, list | tuple):
        entries = list(enumerate(content))
    else:
        return
    tensors = {_WRAPPER_NAMES.sub("", str(name)): value for name, value in entries if _is_tensor(value)}
    if tensors:
        format, prefixes = _detect_format(tensors)
        yield from (_Candidate(keys, author, tensors, format, prefix) for prefix in prefixes)
    for name, value in entries:
        if not _is_tensor(value):
            yield from _find_candidates(value, (*keys, name), author)


def _detect_format(names: Iterable[str]) -> tuple[WeightsFormat | None, list[str]]:
    """Return the format of the networks with these tensor names, and the prefix of each network."""
    for format in FORMATS:
        matches = [re.fullmatch(rf"(.*[./])?(?:{format.marker})", name) for name in names]
        prefixes = {match[1] or "" for match in matches if match}
        if prefixes:
            return format, sorted({name for name in prefixes if not _PRETRAINING_ONLY.fullmatch(name)} or prefixes)
    return None, [""]


def _select_candidate(candidates: list[_Candidate], content: Any, label: str) -> tuple[_Candidate, WeightsFormat]:
    """Return the only network of a file.

    Raises WeightsError if there is none, if there are several different ones, or if it is part of an unknown network.
    """
    known: list[tuple[_Candidate, WeightsFormat]] = []
    for candidate in candidates:
        if candidate.format is not None and not any(_is_same_network(candidate, other) for other, _ in known):
            known.append((candidate, candidate.format))
    if len(known) > 1:
        locations = "; ".join(str(candidate) for candidate, _ in known)
        advice = _advice(known[0][0], whole=len({candidate.keys for candidate, _ in known}) == len(known))
        raise WeightsError(f"{label} contains more than one set of weights: {locations}. {advice}")
    if not known:
        descriptions = ", ".join(format.description for format in FORMATS)
        raise WeightsError(f"{label} {_describe_unknown(candidates, content)}; known formats: {descriptions}")
    candidate, format = known[0]
    if others := _unrelated_tensors(candidate, format):
        raise WeightsError(
            f"{label} contains {format.description} {candidate} and other tensors: {_listed(others)}."
            f" {_advice(candidate, whole=False)}"
        )
    return candidate, format


def _unrelated_tensors(candidate: _Candidate, format: WeightsFormat) -> list[str]:
    """Names of tensors outside of the network's prefix, except for scalars and those of pretraining."""
    return [
        name
        for name, value in candidate.tensors.items()
        if not name.startswith(candidate.prefix)
        and (format.is_detector or not _PRETRAINING_ONLY.fullmatch(name))
        and value.ndim
    ]


def _is_same_network(first: _Candidate, second: _Candidate) -> bool:
    a, b = first.network(), second.network()
    return a.keys() == b.keys() and all(np.array_equal(_to_numpy(a[name]), _to_numpy(b[name])) for name in a)


def _describe_unknown(candidates: list[_Candidate], content: Any) -> str:
    if not candidates:
        if isinstance(content, Mapping):
            return "has an unknown format: it contains no tensors"
        return f"contains a {type(content).__name__}, not a state dict"
    largest = max(candidates, key=lambda candidate: len(candidate.tensors))
    location = f" {largest}" if largest.keys else ""
    return f"has an unknown format: it contains {_listed(largest.tensors)}{location}"


def _advice(candidate: _Candidate, *, whole: bool) -> str:
    """How to save one network in a file of its own: the `whole` dictionary, or the names with its prefix."""
    expression = "torch.load(FILE)" + "".join(f"[{key!r}]" for key in candidate.keys)
    if not whole:
        expression = f"{{k: v for k, v in {expression}.items() if k.startswith({candidate.prefix!r})}}"
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
