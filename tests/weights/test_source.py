"""Loading weights: the network is found under any key and prefix; several different networks are refused."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.source import load_weights

NETWORK = {
    "conv1.weight": np.ones((4, 3, 7, 7), np.float32),
    "layer1.0.conv1.weight": np.zeros((4, 4, 3, 3), np.float32),
}
DETECTOR = {"backbone.body.conv1.weight": np.ones((4, 3, 7, 7), np.float32), "rpn.head.conv.0.0.bias": np.ones(4)}


TWICE = {name: 2 * value + 1 for name, value in NETWORK.items()}


def prefixed(prefix, state=NETWORK):
    return {prefix + name: value for name, value in state.items()}


def assert_loads(content, state=NETWORK):
    loaded = load_weights(content).state
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(loaded[name], value)


def error_message(content):
    with pytest.raises(WeightsError) as error:
        load_weights(content)
    return str(error.value)


@pytest.mark.parametrize("key", ["model", "model_state_dict", "net", "ema", "teacher", "params", "weights", 0])
def test_any_key(key):
    """The optimizer state and other values of a training checkpoint are ignored."""
    momentum = {"state": {0: {"momentum_buffer": np.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    assert_loads({key: NETWORK, "optimizer": momentum, "epoch": 3, "best": np.float64(0.4)})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "encoder.", "a.b.c."])
@pytest.mark.parametrize("state", [NETWORK, DETECTOR])
def test_any_prefix(prefix, state):
    assert_loads({"state_dict": prefixed(prefix, state)}, state)


def test_wrapped_submodules():
    """torch.compile and activation checkpointing of a submodule insert names in the middle."""
    state = {
        "conv1.weight": "_orig_mod.conv1.weight",
        "layer1.0.conv1.weight": "layer1._orig_mod.0._checkpoint_wrapped_module.conv1.weight",
    }
    assert_loads({wrapped: NETWORK[name] for name, wrapped in state.items()})


def test_nested_dictionaries_and_lists():
    assert_loads({"ema": {"module": NETWORK, "updates": 3}})
    assert_loads({"checkpoints": [{"net": prefixed("model.")}]})


@pytest.mark.medium
def test_torch_wrappers():
    """The names in the state dicts of DataParallel and AveragedModel."""
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel

    block = torch.nn.Sequential(torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(4, 4, 3, bias=False)}))
    network = torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(3, 4, 7, bias=False), "layer1": block})
    expected = {name: value.numpy() for name, value in network.state_dict().items()}
    for wrapped in (torch.nn.DataParallel(network), AveragedModel(network)):
        assert wrapped.state_dict().keys() != expected.keys()
        assert_loads({"net": wrapped.state_dict()}, expected)


@pytest.mark.parametrize(("encoder", "copy"), [("encoder_q", "encoder_k"), ("base_encoder", "momentum_encoder")])
def test_moco_query_encoder(encoder, copy, caplog):
    """The momentum encoder, the queue and the heads are not part of the backbone."""
    caplog.set_level(logging.INFO, logger="mrcnn_jax")
    extra = {
        "module.queue": np.ones((4, 4)),
        "module.queue_ptr": np.zeros(1),
        f"module.{encoder}.fc.0.weight": np.ones(2),
    }
    copied = prefixed(f"module.{copy}.", {name: 7 * value for name, value in NETWORK.items()})
    assert_loads({"state_dict": {**copied, **prefixed(f"module.{encoder}."), **extra}, "arch": "resnet50"})
    assert f"read under state_dict (prefix 'module.{encoder}.'); not used: module." in caplog.messages[-1]


def test_pretraining_heads_are_dropped():
    swav = {"projection_head.0.weight": np.ones((4, 4)), "prototypes.weight": np.ones((3, 4)), "fc.bias": np.ones(9)}
    assert_loads({**prefixed("module."), **prefixed("module.", swav)})
    assert_loads({"teacher": {**prefixed("backbone."), "head.mlp.0.weight": np.ones((4, 4))}})


def test_several_networks_are_refused():
    """For example with and without averaging: the message lists them."""
    averaged = {"n_averaged": np.int64(5), **prefixed("module.", TWICE)}
    assert error_message({"model": NETWORK, "model_ema": averaged, "epoch": 1}) == (
        "the state dict contains more than one set of weights: under model; under model_ema (prefix 'module.')."
        " Save only the weights to use, for example: torch.save(torch.load(FILE)['model'], NEW)"
    )
    assert error_message({**prefixed("student."), **prefixed("teacher.", TWICE)}) == (
        "the state dict contains more than one set of weights: at the top level (prefix 'student.'); at the top level"
        " (prefix 'teacher.'). Save only the weights to use, for example: torch.save({k: v for k, v in"
        " torch.load(FILE).items() if k.startswith('student.')}, NEW)"
    )


def test_equal_networks_count_as_one():
    assert_loads({"model": NETWORK, "ema": prefixed("module.")})


def test_backbone_of_an_unknown_network_is_refused():
    """Otherwise the rest of the network would be dropped silently."""
    other = {**prefixed("backbone."), "neck.lateral_convs.0.conv.weight": np.ones(3), "bbox_head.cls.bias": np.ones(2)}
    message = error_message({"state_dict": other})
    assert "a torchvision classifier under state_dict (prefix 'backbone.') and other tensors: " in message
    assert "other tensors: bbox_head.cls.bias, neck.lateral_convs.0.conv.weight. Save only" in message
    assert "torch.load(FILE)['state_dict'].items() if k.startswith('backbone.')" in message


def test_advice_is_valid_code():
    """The expressions in the messages, evaluated on the content that they are about."""
    for content in (
        {"a": {"student": NETWORK}, "b": [prefixed("module.", TWICE)]},
        {**prefixed("student."), **prefixed("teacher.", TWICE)},
        {"state_dict": {**prefixed("backbone."), "neck.bias": np.ones(3)}},
    ):
        expression = re.search(r"torch\.save\((.*), NEW\)", error_message(content))[1]
        assert_loads(eval(expression.replace("torch.load(FILE)", "content"), {"content": content}))


def test_unknown_formats():
    assert "it contains no tensors" in error_message({"epoch": 3, "model": {}})
    assert "it contains blocks.0.bias, blocks.0.weight under net; known formats" in error_message(
        {"net": {"blocks.0.weight": np.ones(2), "blocks.0.bias": np.ones(2)}, "optimizer": [np.ones(2)]}
    )
    assert "it contains 0, 1 under layers.5; known formats" in error_message({"layers": {5: [np.ones(2), np.ones(2)]}})
    names = ", ".join(f"a{i}" for i in range(5))
    assert f"it contains {names}, ...; known formats" in error_message({f"a{i}": np.ones(2) for i in range(6)})


def test_control_characters_are_escaped():
    assert error_message({"\x1b[2J": {"\x07": np.ones(2)}}).isprintable()
    assert error_message({"\x1b[2J": NETWORK, "b": TWICE}).isprintable()
