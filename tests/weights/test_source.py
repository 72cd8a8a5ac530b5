"""Where in a file the weights are: under any key and prefix if there is one set of them, else a choice is asked for."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.source import detect_format

NETWORK = {
    "conv1.weight": np.ones((4, 3, 7, 7), np.float32),
    "layer1.0.conv1.weight": np.zeros((4, 4, 3, 3), np.float32),
}
DETECTOR = {"backbone.body.conv1.weight": np.ones((4, 3, 7, 7), np.float32), "rpn.head.conv.0.0.bias": np.ones(4)}


TWICE = {name: 2 * value + 1 for name, value in NETWORK.items()}


def prefixed(prefix, state=NETWORK):
    return {prefix + name: value for name, value in state.items()}


def assert_read(content, state=NETWORK):
    found = detect_format(content).state
    assert found.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value)


def refusal(content):
    with pytest.raises(WeightsError) as error:
        detect_format(content)
    return str(error.value)


@pytest.mark.parametrize("key", ["model", "model_state_dict", "net", "ema", "teacher", "params", "weights", 0])
def test_any_key(key):
    """Beside what else a training saves: the optimizer's tensors are of no network."""
    momentum = {"state": {0: {"momentum_buffer": np.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    assert_read({key: NETWORK, "optimizer": momentum, "epoch": 3, "best": np.float64(0.4)})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "encoder.", "a.b.c."])
@pytest.mark.parametrize("state", [NETWORK, DETECTOR])
def test_any_prefix(prefix, state):
    assert_read({"state_dict": prefixed(prefix, state)}, state)


def test_modules_within_a_network_may_be_wrapped():
    """torch.compile and checkpointing of a part put their names in the middle."""
    state = {
        "conv1.weight": "_orig_mod.conv1.weight",
        "layer1.0.conv1.weight": "layer1._orig_mod.0._checkpoint_wrapped_module.conv1.weight",
    }
    assert_read({wrapped: NETWORK[name] for name, wrapped in state.items()})


def test_dictionaries_within_dictionaries_and_lists():
    assert_read({"ema": {"module": NETWORK, "updates": 3}})
    assert_read({"checkpoints": [{"net": prefixed("model.")}]})


@pytest.mark.medium
def test_what_torch_wraps():
    """The names that torch itself makes of a network's own."""
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel

    block = torch.nn.Sequential(torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(4, 4, 3, bias=False)}))
    network = torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(3, 4, 7, bias=False), "layer1": block})
    expected = {name: value.numpy() for name, value in network.state_dict().items()}
    for wrapped in (torch.nn.DataParallel(network), AveragedModel(network)):
        assert wrapped.state_dict().keys() != expected.keys()
        assert_read({"net": wrapped.state_dict()}, expected)


@pytest.mark.parametrize(("encoder", "copy"), [("encoder_q", "encoder_k"), ("base_encoder", "momentum_encoder")])
def test_the_encoder_that_moco_trains(encoder, copy, caplog):
    """Its other encoder, its queue and the heads of both are no part of the backbone."""
    caplog.set_level(logging.INFO, logger="mrcnn_jax")
    extra = {
        "module.queue": np.ones((4, 4)),
        "module.queue_ptr": np.zeros(1),
        f"module.{encoder}.fc.0.weight": np.ones(2),
    }
    copied = prefixed(f"module.{copy}.", {name: 7 * value for name, value in NETWORK.items()})
    assert_read({"state_dict": {**copied, **prefixed(f"module.{encoder}."), **extra}, "arch": "resnet50"})
    assert f"read under state_dict (names after 'module.{encoder}.'); left out: module." in caplog.messages[-1]


def test_heads_of_pretraining_are_left_out():
    swav = {"projection_head.0.weight": np.ones((4, 4)), "prototypes.weight": np.ones((3, 4)), "fc.bias": np.ones(9)}
    assert_read({**prefixed("module."), **prefixed("module.", swav)})
    assert_read({"teacher": {**prefixed("backbone."), "head.mlp.0.weight": np.ones((4, 4))}})


def test_several_sets_of_weights_are_named():
    """Averaged weights or not is for the user to say."""
    averaged = {"n_averaged": np.int64(5), **prefixed("module.", TWICE)}
    assert refusal({"model": NETWORK, "model_ema": averaged, "epoch": 1}) == (
        "the state dict holds more than one set of weights: under model; under model_ema (names after 'module.')."
        " Save the one to use alone, such as: torch.save(torch.load(FILE)['model'], NEW)"
    )
    assert refusal({**prefixed("student."), **prefixed("teacher.", TWICE)}) == (
        "the state dict holds more than one set of weights: at the top (names after 'student.'); at the top (names"
        " after 'teacher.'). Save the one to use alone, such as: torch.save({k: v for k, v in torch.load(FILE).items()"
        " if k.startswith('student.')}, NEW)"
    )


def test_the_same_weights_twice_are_one_set():
    assert_read({"model": NETWORK, "ema": prefixed("module.")})


def test_a_backbone_within_a_network_of_another_kind_is_named():
    """As the rest of the network would be missing without a word."""
    other = {**prefixed("backbone."), "neck.lateral_convs.0.conv.weight": np.ones(3), "bbox_head.cls.bias": np.ones(2)}
    message = refusal({"state_dict": other})
    assert (
        "a torchvision classifier under state_dict (names after 'backbone.'), and other tensors beside it: " in message
    )
    assert "beside it: bbox_head.cls.bias, neck.lateral_convs.0.conv.weight. Save the one" in message
    assert "torch.load(FILE)['state_dict'].items() if k.startswith('backbone.')" in message


def test_advice_can_be_followed():
    """The expressions of two messages, evaluated on what they are about."""
    for content in (
        {"a": {"student": NETWORK}, "b": [prefixed("module.", TWICE)]},
        {**prefixed("student."), **prefixed("teacher.", TWICE)},
        {"state_dict": {**prefixed("backbone."), "neck.bias": np.ones(3)}},
    ):
        expression = re.search(r"torch\.save\((.*), NEW\)", refusal(content))[1]
        assert_read(eval(expression.replace("torch.load(FILE)", "content"), {"content": content}))


def test_no_tensors_is_only_said_when_there_are_none():
    assert "it holds no tensors" in refusal({"epoch": 3, "model": {}})
    assert "it holds blocks.0.bias, blocks.0.weight under net; known are" in refusal(
        {"net": {"blocks.0.weight": np.ones(2), "blocks.0.bias": np.ones(2)}, "optimizer": [np.ones(2)]}
    )
    assert "it holds 0, 1 under layers.5; known are" in refusal({"layers": {5: [np.ones(2), np.ones(2)]}})
    names = ", ".join(f"a{i}" for i in range(5))
    assert f"it holds {names}, ...; known are" in refusal({f"a{i}": np.ones(2) for i in range(6)})


def test_names_of_a_file_command_no_terminal():
    assert refusal({"\x1b[2J": {"\x07": np.ones(2)}}).isprintable()
    assert refusal({"\x1b[2J": NETWORK, "b": TWICE}).isprintable()
