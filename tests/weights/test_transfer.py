"""Transfer of weights to models: formats, configuration fields that follow, matching of classes and heads."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import pickle

import flax
import jax
import numpy as np
import pytest

from mrcnn_jax.config import presets
from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights import detectron2_names, preprocessing, torchvision_names, transfer
from mrcnn_jax.weights.coco_categories import COCO_CATEGORIES, coco_categories
from mrcnn_jax.weights.io import weight_files
from mrcnn_jax.weights.preprocessing import TORCHVISION, Preprocessing, apply_preprocessing, preprocessing_of
from mrcnn_jax.weights.source import load_weights
from mrcnn_jax.weights.transfer import import_weights, init_from_file, init_from_run

pytestmark = pytest.mark.medium

MSRA = Preprocessing("bgr", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), stride_in_1x1=True)
OTHER = Preprocessing("rgb", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), stride_in_1x1=False, norm_eps=0.5)
DETECTRON = MSRA._replace(pixel_mean=(102.9801, 115.9465, 122.7717))


@pytest.fixture(scope="module")
def network(variant, random_variables):
    """A network with frozen batch norms and three classes, and its variables."""
    config = variant("frozen")
    return config, random_variables(config)


@pytest.fixture(autouse=True)
def messages(caplog):
    caplog.set_level(logging.INFO, logger="mrcnn_jax")
    return caplog


def assert_trees_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def with_other_fields(config):
    """The same network with other values in all fields that weights determine."""
    return dataclasses.replace(apply_preprocessing(config, OTHER), num_classes=7)


def save(folder, name, content):
    """Write `content`, a state dict (anything for a pickle), and return the path."""
    path = folder / name
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        weight_files.write(path, content)
    return path


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors"])
@pytest.mark.parametrize(
    ("export", "expected"), [(torchvision_names.export_state, TORCHVISION), (detectron2_names.export_state, OTHER)]
)
def test_weights_determine_configuration_fields(network, tmp_path, name, export, expected):
    """Number of classes, preprocessing, stride and epsilon are those of the file if it states them."""
    config, variables = network
    path = save(tmp_path, name, export(variables))
    model, imported = import_weights(path, with_other_fields(config))
    assert_trees_equal(imported, variables)
    assert model.num_classes == 3
    assert (model.category_ids, model.category_names) == ((1, 2, 3), ())
    assert preprocessing_of(model) == expected
    assert dataclasses.replace(apply_preprocessing(model, preprocessing_of(config)), category_ids=()) == config


def test_detectron2_pickle_and_torch_checkpoint(network, tmp_path):
    """A file of the model zoo, and a training checkpoint with optimizer state and the prefix of DataParallel."""
    config, variables = network
    state = detectron2_names.export_state(variables)
    zoo = save(tmp_path, "zoo.pkl", {"model": state, "__author__": "Detectron2 Model Zoo"})
    assert_trees_equal(import_weights(zoo, config, format="detectron2")[1], variables)
    torch = pytest.importorskip("torch")
    tensors = {f"module.{name}": torch.from_numpy(value) for name, value in state.items()}
    torch.save({"model": tensors, "optimizer": {"state": {}}, "iteration": 7}, tmp_path / "last.pth")
    assert_trees_equal(import_weights(tmp_path / "last.pth", config)[1], variables)


def test_state_dict_of_torch_tensors(network):
    torch = pytest.importorskip("torch")
    config, variables = network
    state = {
        name: torch.nn.Parameter(torch.from_numpy(v)) for name, v in torchvision_names.export_state(variables).items()
    }
    state["backbone.body.bn1.num_batches_tracked"] = torch.tensor(3)
    assert_trees_equal(import_weights(state, config, format="torchvision")[1], variables)


def test_detectron_blobs(network, as_blobs, tmp_path):
    config, variables = network
    blobs = as_blobs(detectron2_names.export_state(variables))
    blobs |= {f"{name}_momentum": value for name, value in blobs.items()}
    path = save(tmp_path, "model_final.pkl", {"blobs": blobs, "cfg": "MODEL: {}"})
    model, imported = import_weights(path, config, format="detectron2")
    assert_trees_equal(imported["params"], variables["params"])
    assert preprocessing_of(model) == DETECTRON


@pytest.mark.parametrize(
    ("name", "author", "expected"),
    [
        ("resnext", "", MSRA._replace(pixel_std=(57.375, 57.12, 58.395), stride_in_1x1=False)),
        ("gn everywhere", "", MSRA._replace(stride_in_1x1=False)),
        ("c4", "Detectron2 Model Zoo", MSRA),
        ("c4", "torchvision", TORCHVISION),
    ],
)
def test_preprocessing_of_detectron2_networks(variant, random_variables, name, author, expected):
    state = detectron2_names.export_state(random_variables(variant(name)))
    weights = load_weights({"model": state, "__author__": author})
    assert weights.preprocessing == expected
    assert weights.inferred == (author != "torchvision")


@pytest.mark.parametrize("name", ["scratch_mask_rcnn_R_50_FPN_3x_gn", "scratch_mask_rcnn_R_50_FPN_9x_syncbn"])
def test_preset_determines_what_a_detectron2_file_does_not_state(variant, random_variables, name):
    """Pixels of models trained from random weights are scaled or not, which their tensors do not show."""
    preset = preprocessing_of(presets.detectron2_model(f"Misc/{name}"))
    config = apply_preprocessing(variant("gn everywhere"), preset)
    state = detectron2_names.export_state(random_variables(config))
    assert preprocessing_of(import_weights(state, config)[0]) == preset
    state |= {"pixel_mean": np.float32([4, 5, 6]), "pixel_std": np.float32([1, 1, 2])}
    stated = preprocessing_of(import_weights(state, config)[0])
    assert (stated.pixel_mean, stated.pixel_std) == ((4.0, 5.0, 6.0), (1.0, 1.0, 2.0))


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), ("rgb", False)),
        ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), ("bgr", True)),
    ],
)
def test_stored_pixel_statistics_are_used(network, mean, std, expected):
    config, variables = network
    state = detectron2_names.export_state(variables)
    state |= {
        "pixel_mean": np.array(mean, np.float32)[:, None, None],
        "pixel_std": np.array(std, np.float32)[:, None, None],
    }
    model, _ = import_weights(state, config)
    assert (model.pixel_mean, model.pixel_std) == (mean, std)
    assert (model.channel_order, model.backbone.stride_in_1x1) == expected


@pytest.mark.parametrize("name", ["resnext", "gn"])
def test_detectron_without_msra_backbone_has_stride_in_3x3(variant, random_variables, name):
    state = detectron2_names.export_state(random_variables(variant(name)))
    assert preprocessing.detectron_preprocessing(state) == DETECTRON._replace(stride_in_1x1=False)


def test_presets_have_the_preprocessing_of_their_weights():
    """The tables in `presets` and in `preprocessing` agree."""
    assert preprocessing_of(presets.torchvision()) == TORCHVISION
    assert preprocessing_of(presets.detectron2()) == MSRA


# --- the epsilon of frozen batch norms


def eps(config, source, messages, **options):
    """Epsilon of the imported model, and the lines of the log about it."""
    messages.clear()
    model, _ = import_weights(source, config, **options)
    lines = [record.getMessage() for record in messages.records if record.getMessage().startswith("epsilon")]
    return model.backbone.norm_eps, lines


def test_epsilon_of_published_files_is_zero(network, tmp_path, monkeypatch, messages):
    config, variables = network
    state = torchvision_names.export_state(variables)
    path = save(tmp_path, "maskrcnn_resnet50_fpn_coco-bf2d0c1e.npz", state)
    assert eps(config, path, messages)[0] == 1e-5  # the name alone does not count
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(preprocessing, "_COCO_V1", (f"maskrcnn_resnet50_fpn_coco-{digits}.pth",))
    value, lines = eps(config, path, messages)
    assert value == 0
    assert lines == [
        f"epsilon of the frozen batch norms: 0 (the file is torchvision's maskrcnn_resnet50_fpn_coco-{digits}.pth)"
    ]
    assert eps(config, path, messages, frozen_bn_eps=1e-3)[0] == 1e-3
    assert eps(config, state, messages) == (
        1e-5,
        ["epsilon of the frozen batch norms: 1e-05 (the default)"],
    )
    assert eps(config, state, messages, frozen_bn_eps=0.0) == (
        0,
        ["epsilon of the frozen batch norms: 0 (as requested)"],
    )


def test_published_names_contain_a_hash():
    """The three COCO_V1 files."""
    assert len(preprocessing._COCO_V1) == 3
    for name in preprocessing._COCO_V1:
        assert len(name[-12:-4]) == 8
        int(name[-12:-4], 16)


def test_epsilon_is_only_for_frozen_norms(variant, random_variables, messages):
    config = variant("v2")
    state = torchvision_names.export_state(random_variables(config))
    assert eps(config, state, messages) == (1e-5, [])
    with pytest.raises(WeightsError, match=r"frozen_bn_eps=0.0 is for frozen batch norms; .* 'bn'"):
        import_weights(state, config, frozen_bn_eps=0.0)


# --- classes


def test_categories_of_coco():
    assert len(COCO_CATEGORIES) == 80
    ids, names = coco_categories(80, person=False)
    assert (ids[11], names[11], ids[-1], names[-1]) == (13, "stop sign", 90, "toothbrush")
    ids, names = coco_categories(90, person=False)
    assert (ids, names[11], names[12]) == (tuple(range(1, 91)), "N/A", "stop sign")
    assert [names[i - 1] for i in COCO_CATEGORIES] == list(COCO_CATEGORIES.values())
    assert coco_categories(1, person=True) == ((1,), ("person",))
    assert coco_categories(1, person=False) == ((1,), ())


def test_categories_equal_those_of_the_dataset(shared_data):
    import json

    data = json.loads((shared_data("coco_by") / "annotations.json").read_text())
    assert {c["id"]: c["name"] for c in data["categories"]} == COCO_CATEGORIES


@pytest.mark.parametrize("classes", [80, 90])
def test_classes_of_coco_models_are_named(variant, random_variables, classes):
    config = variant("frozen", classes)
    model, _ = import_weights(detectron2_names.export_state(random_variables(config)), variant("frozen"))
    assert (model.num_classes, len(model.category_ids), model.category_ids[-1]) == (classes, classes, 90)
    assert (model.category_names[0], model.category_names[-1]) == ("person", "toothbrush")


def test_categories_are_kept_if_there_are_as_many(variant, random_variables):
    config = dataclasses.replace(variant("gn"), category_ids=(4, 5, 9), category_names=("a", "b", "c"))
    state = detectron2_names.export_state(random_variables(config))
    assert import_weights(state, config)[0].category_ids == (4, 5, 9)
    one = import_weights(
        detectron2_names.export_state(random_variables(variant("keypoints", 1))), variant("keypoints")
    )[0]
    assert (one.category_ids, one.category_names) == ((1,), ("person",))


def test_keypoints_of_coco_persons_are_named(variant, random_variables):
    person = variant("keypoints", 1)
    person = dataclasses.replace(person, keypoint=dataclasses.replace(person.keypoint, num_keypoints=17))
    model, _ = import_weights(detectron2_names.export_state(random_variables(person)), person)
    assert len(model.keypoint_names) == 17
    shins = {(model.keypoint_names[a], model.keypoint_names[b]) for a, b in model.skeleton}
    assert {("left_ankle", "left_knee"), ("right_ankle", "right_knee")} <= shins
    other = variant("keypoints", 2)
    assert not import_weights(detectron2_names.export_state(random_variables(other)), other)[0].keypoint_names


# --- errors


def test_other_formats_are_refused(network, tmp_path):
    config, variables = network
    state = torchvision_names.export_state(variables)
    with pytest.raises(WeightsError, match="is a torchvision detection model, not in the format 'detectron2'"):
        import_weights(state, config, format="detectron2")
    with pytest.raises(WeightsError, match="the state dict is a torchvision classifier, not a detection model"):
        import_weights(classifier(state), config)
    with pytest.raises(WeightsError, match=r"has an unknown format: it contains a.b.weight; .* a Detectron2 model"):
        import_weights({"a.b.weight": np.zeros(2)}, config)
    with pytest.raises(WeightsError, match="it contains no tensors; "):
        import_weights({"epoch": 3}, config)
    with pytest.raises(WeightsError, match="contains a list, not a state dict"):
        import_weights(save(tmp_path, "list.pkl", [1, 2]), config)
    del state["roi_heads.box_predictor.cls_score.bias"]
    with pytest.raises(WeightsError, match=r"has no roi_heads\.box_predictor\.cls_score\.bias"):
        import_weights(state, config)


def test_mismatches_are_listed_with_the_file(network, tmp_path):
    config, variables = network
    state = torchvision_names.export_state(variables)
    state["extra.weight"] = state.pop("rpn.head.cls_logits.bias")
    path = save(tmp_path, "broken.npz", state)
    with pytest.raises(WeightsError) as error:
        import_weights(path, config)
    assert str(error.value).splitlines() == [
        f"{path}: these weights do not fit the model:",
        "  missing: rpn.head.cls_logits.bias",
        "  unexpected: extra.weight",
    ]


@pytest.mark.parametrize("value", [np.float32(np.nan), np.float64(1e300)])
def test_non_finite_weights_are_refused(network, value):
    """A network with NaN in it detects nothing."""
    config, variables = network
    state = detectron2_names.export_state(variables)
    name = "roi_heads.box_head.fc1.bias"
    state[name] = np.where(np.arange(len(state[name])) == 3, value, state[name])
    with pytest.raises(WeightsError, match=f"\n  not finite: {name} contains NaN or infinity$"):
        import_weights(state, config)


# --- initial variables of a training run


def classifier(state):
    """The state dict of a torchvision classifier with the backbone of a detection model."""
    prefix = "backbone.body."
    network = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {**network, "fc.weight": np.zeros((1000, 4), np.float32), "fc.bias": np.zeros(1000, np.float32)}


def test_whole_model_with_other_classes(network, random_variables, messages):
    """The layers of 90 classes are initialized randomly; everything else is copied."""
    config, _ = network
    theirs = random_variables(dataclasses.replace(config, num_classes=90))
    model, variables = init_from_file(
        with_other_fields(config), torchvision_names.export_state(theirs), jax.random.key(0)
    )
    assert model.num_classes == 7  # of the training data
    assert preprocessing_of(model) == TORCHVISION
    new = {("box_head", "logits"), ("box_head", "deltas"), ("mask_head", "logits")}
    for part, modules in variables["params"].items():
        for module, ours in modules.items():
            if (part, module) in new:
                assert ours["kernel"].shape[-1] in (7, 8, 28)
                assert np.std(ours["kernel"]) < 0.02  # initial values, not those of the file, whose std is 1
            else:
                assert_trees_equal(ours, theirs["params"][part][module])
    assert_trees_equal(variables["frozen"], theirs["frozen"])
    assert "random initial values for box_head/deltas, box_head/logits, mask_head/logits" in log_text(messages)
    assert "pixel_mean is 123.675 116.28 103.53, was 1 2 3" in log_text(messages)
    assert "stride_in_1x1" not in log_text(messages)  # it was False before


def test_whole_model_with_the_same_classes_is_copied(network, messages):
    config, variables = network
    assert_trees_equal(
        init_from_file(config, detectron2_names.export_state(variables), jax.random.key(0))[1], variables
    )
    assert not any("random" in record.getMessage() for record in messages.records)


def test_other_keypoints(variant, random_variables):
    theirs = random_variables(variant("keypoints", 1))
    config = variant("keypoints", 1)
    config = dataclasses.replace(config, keypoint=dataclasses.replace(config.keypoint, num_keypoints=5, flip_map=()))
    _, variables = init_from_file(config, detectron2_names.export_state(theirs), jax.random.key(0))
    assert variables["params"]["keypoint_head"]["deconv"]["kernel"].shape[-1] == 5
    assert_trees_equal(variables["params"]["box_head"], theirs["params"]["box_head"])


# --- classes and keypoints by name


def named(config, *names, **fields):
    return dataclasses.replace(config, num_classes=len(names), category_names=names, **fields)


def log_text(messages):
    return "\n".join(record.getMessage() for record in messages.records)


def predictor(state):
    """torchvision's class scores (N + 1, ...), boxes (N + 1, 4, ...) and masks (N + 1, ...): weights and biases."""
    for leaf in ("weight", "bias"):
        scores = state[f"roi_heads.box_predictor.cls_score.{leaf}"]
        boxes = state[f"roi_heads.box_predictor.bbox_pred.{leaf}"]
        yield (
            scores,
            boxes.reshape(len(scores), 4, *boxes.shape[1:]),
            state[f"roi_heads.mask_predictor.mask_fcn_logits.{leaf}"],
        )


def test_80_coco_classes_from_torchvisions_90(network, random_variables, messages):
    """Each of the 80 classes gets the rows of its category id, the class index in torchvision."""
    config, _ = network
    ids, names = tuple(COCO_CATEGORIES), tuple(COCO_CATEGORIES.values())
    state = torchvision_names.export_state(random_variables(dataclasses.replace(config, num_classes=90)))
    _, variables = init_from_file(named(config, *names, category_ids=ids), state, jax.random.key(0))
    for ours, theirs in zip(predictor(torchvision_names.export_state(variables)), predictor(state), strict=True):
        for value, source in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(value[1:], source[list(ids)])
    np.testing.assert_array_equal(
        variables["params"]["box_head"]["logits"]["bias"][0], state["roi_heads.box_predictor.cls_score.bias"][0]
    )
    assert "its classes are assumed to be COCO's, because of their number" in log_text(messages)
    assert "11 with the same index: person, " in log_text(messages)
    assert "69 with another index: stop sign (13 to 12), " in log_text(messages)
    assert "10 not in the model: N/A" in log_text(messages)
    assert "random" not in log_text(messages)


def test_other_classes_of_the_same_number(variant, random_variables, messages):
    """From dog, cat and emu to cat, cow and dog: two are matched by name, cow is initialized randomly."""
    run, config = named(variant("frozen"), "dog", "cat", "emu"), named(variant("frozen"), "cat", "cow", "dog")
    theirs = random_variables(run)
    _, variables = init_from_run(config, run, theirs, jax.random.key(0), "runs/first")
    state = torchvision_names.export_state(theirs)
    for ours, source in zip(predictor(torchvision_names.export_state(variables)), predictor(state), strict=True):
        for value, other in zip(ours, source, strict=True):
            np.testing.assert_array_equal(value[[0, 1, 3]], other[[0, 2, 1]])
            assert np.abs(value[2]).max() < 0.1  # random values around 0; those of the file are around 1
    assert (
        "runs/first: classes matched by name: 2 with another index: cat (2 to 1), dog (1 to 3);"
        " 1 not in the weights: cow; 1 not in the model: emu"
    ) in log_text(messages)
    assert "random" not in log_text(messages)


def test_without_common_classes_the_layers_are_random(variant, random_variables, messages):
    """80 classes under Detectron2's names are COCO's."""
    config = named(variant("frozen"), *(f"cell {i}" for i in range(80)))
    _, variables = init_from_file(config, detectron2_names.export_state(random_variables(config)), jax.random.key(0))
    assert np.abs(variables["params"]["box_head"]["logits"]["kernel"]).max() < 0.1
    assert "80 not in the weights: cell 0, " in log_text(messages)
    assert "random initial values for box_head/deltas, box_head/logits, mask_head/logits" in log_text(messages)


def test_keypoints_by_name(variant, random_variables, messages):
    """Keypoints in another order; the class is the same."""

    def skeleton(*names):
        config = named(variant("keypoints"), "person", keypoint_names=names)
        keypoint = dataclasses.replace(config.keypoint, num_keypoints=len(names), flip_map=())
        return dataclasses.replace(config, keypoint=keypoint)

    run = skeleton("nose", "left_eye", "right_eye")
    theirs = random_variables(run)
    ours = skeleton("Right Eye", "nose")
    _, variables = init_from_run(ours, run, theirs, jax.random.key(0), "run")
    for leaf, value in variables["params"]["keypoint_head"]["deconv"].items():
        np.testing.assert_array_equal(value, theirs["params"]["keypoint_head"]["deconv"][leaf][..., [2, 0]])
    assert_trees_equal(variables["params"]["box_head"], theirs["params"]["box_head"])
    line = "keypoints matched by name: 2 with another index: Right Eye as right_eye (3 to 1), nose (1 to 2)"
    assert line in log_text(messages)


def test_inconsistent_heads_are_refused(network):
    """Boxes of another number of classes than the scores."""
    config, variables = network
    state = torchvision_names.export_state(variables)
    state |= {name: value[:-4] for name, value in state.items() if "bbox_pred" in name}
    with pytest.raises(WeightsError, match=r"box_predictor\.bbox_pred\.weight is \(12, 32\)"):
        init_from_file(config, state, jax.random.key(0))


def test_class_agnostic_weights(variant, random_variables):
    """Recognized by their number of outputs; the box and the mask are used for each class."""
    theirs = random_variables(variant("agnostic", 5))
    config = dataclasses.replace(variant("gn"), num_classes=2)
    _, variables = init_from_file(config, detectron2_names.export_state(theirs), jax.random.key(0))
    deltas, logits = variables["params"]["box_head"]["deltas"], variables["params"]["mask_head"]["logits"]
    np.testing.assert_array_equal(deltas["bias"], np.tile(theirs["params"]["box_head"]["deltas"]["bias"], 2))
    np.testing.assert_array_equal(logits["bias"], np.tile(theirs["params"]["mask_head"]["logits"]["bias"], 2))


# --- other heads and norms


@pytest.mark.parametrize("source", ["mask", "boxes", "keypoint"])
@pytest.mark.parametrize("target", ["mask", "boxes", "keypoint", "both"])
@pytest.mark.parametrize("origin", ["torchvision", "detectron2", "run"])
def test_other_heads(variant, random_variables, messages, monkeypatch, source, target, origin):
    """Heads of both are copied; a head that only the model has is random, one that only the weights have is dropped."""
    base, keypoint = variant("frozen"), variant("keypoints").keypoint
    kinds = {
        "mask": base,
        "boxes": dataclasses.replace(base, mask=None),
        "keypoint": dataclasses.replace(base, mask=None, keypoint=keypoint),
        "both": dataclasses.replace(base, keypoint=keypoint),
    }
    heads = {
        "boxes": set(),
        "mask": {"mask_head"},
        "keypoint": {"keypoint_head"},
        "both": {"mask_head", "keypoint_head"},
    }
    new, extra = heads[target] - heads[source], heads[source] - heads[target]
    drawn = []

    def draw(model, key, paths):
        drawn.extend({path[1] for path in paths})
        return flax.traverse_util.unflatten_dict({path: np.zeros(1) for path in paths})

    monkeypatch.setattr(transfer, "init_variables", draw)
    theirs = random_variables(kinds[source])
    if origin == "run":
        _, variables = init_from_run(kinds[target], kinds[source], theirs, jax.random.key(0), "run")
    else:
        state = {"torchvision": torchvision_names, "detectron2": detectron2_names}[origin].export_state(theirs)
        _, variables = init_from_file(kinds[target], state, jax.random.key(0))
    assert set(drawn) == new
    assert_trees_equal(variables["frozen"], theirs["frozen"])
    ours = variables["params"]
    assert {part for part in ours if part.endswith("head")} == {"box_head", "rpn_head", *heads[target]}
    for part in ours.keys() - new:
        assert_trees_equal(ours[part], theirs["params"][part])
    assert ("not used, because the model has none: " + ", ".join(extra) in log_text(messages)) == bool(extra)
    assert ("random initial values for " + ", ".join(sorted(new)) in log_text(messages)) == bool(new)


def test_incomplete_head_is_refused(network):
    config, variables = network
    state = torchvision_names.export_state(variables)
    del state["roi_heads.mask_predictor.conv5_mask.bias"]
    with pytest.raises(WeightsError, match=r"missing: roi_heads\.mask_predictor\.conv5_mask\.bias"):
        init_from_file(config, state, jax.random.key(0))


def test_frozen_and_trained_norms_are_exchanged(variant, random_variables, messages):
    """Constants and statistics are the same, in other collections."""
    frozen, learned = variant("frozen"), variant("bn")
    theirs = random_variables(learned)
    _, variables = init_from_run(frozen, learned, theirs, jax.random.key(0), "run")
    assert "run: model.backbone.norm is frozen_bn, was bn: constants and statistics are kept" in log_text(messages)
    ours, params = variables["frozen"]["backbone"], theirs["params"]["backbone"]
    norm = {**params["stem"]["norm"]["norm"], **theirs["batch_stats"]["backbone"]["stem"]["norm"]["norm"]}
    assert_trees_equal(ours["stem"]["norm"], norm)
    assert set(norm) == {"scale", "bias", "mean", "var"}
    assert len(jax.tree.leaves(ours)) == len(jax.tree.leaves(theirs["batch_stats"]["backbone"])) * 2
    _, back = init_from_run(learned, frozen, variables, jax.random.key(0), "run")
    assert_trees_equal(back, theirs)
    synced = dataclasses.replace(learned, backbone=dataclasses.replace(learned.backbone, norm="sync_bn"))
    assert_trees_equal(init_from_run(synced, learned, theirs, jax.random.key(0), "run")[1], theirs)


def test_only_heads_may_differ(network, random_variables):
    """Another width of the hidden layer is an error."""
    config, variables = network
    narrower = dataclasses.replace(config, box=dataclasses.replace(config.box, hidden=16), num_classes=5)
    with pytest.raises(WeightsError, match=r"shape: roi_heads.box_predictor.bbox_pred.weight is \(16, 32\)"):
        init_from_file(narrower, torchvision_names.export_state(variables), jax.random.key(0))


def test_classifier_of_detectron2(variant, random_variables):
    """Only the backbone is copied, including the shared head of C4."""
    config = variant("c4")
    theirs = random_variables(config)
    state = detectron2_names.export_state(theirs)
    bare = {}
    for tensor, value in state.items():
        tensor = tensor.removeprefix("backbone.").removeprefix("bottom_up.").removeprefix("roi_heads.")
        if tensor.startswith(("stem.", "res")):
            bare[tensor] = value
    bare["stem.fc.weight"] = np.zeros((10, 4), np.float32)
    model, variables = init_from_file(config, {"model": bare, "__author__": "torchvision"}, jax.random.key(0))
    assert preprocessing_of(model) == TORCHVISION
    for collection in ("params", "frozen"):
        for part in ("backbone", "res5"):
            assert_trees_equal(variables[collection].get(part), theirs[collection].get(part))
    assert np.std(variables["params"]["rpn_head"]["conv1"]["kernel"]) < 0.02


def test_torchvision_classifier(network, messages):
    config, theirs = network
    state = classifier(torchvision_names.export_state(theirs))
    state["bn1.num_batches_tracked"] = np.int64(3)
    model, variables = init_from_file(config, state, jax.random.key(0))
    assert preprocessing_of(model) == TORCHVISION
    assert "random initial values for box_head, fpn, mask_head, rpn_head" in messages.messages[-1]
    assert_trees_equal(variables["params"]["backbone"], theirs["params"]["backbone"])
    assert_trees_equal(variables["frozen"], theirs["frozen"])


@pytest.mark.parametrize("fused", [True, False])
def test_msra_classifier(network, as_blobs, fused):
    """Detectron2's copy has batch norm statistics; in Detectron's they are fused, and the pixel means differ."""
    config, theirs = network
    state = detectron2_names.export_state(theirs)
    blobs = {name: v for name, v in as_blobs(state).items() if name.startswith(("conv1_", "res_conv1", "res"))}
    if not fused:
        for name in [name for name in blobs if name.endswith("_bn_s")]:
            prefix = name.removesuffix("s")
            scale, offset = blobs.pop(prefix + "s"), blobs.pop(prefix + "b")
            blobs |= {f"{prefix}gamma": scale, f"{prefix}beta": offset, f"{prefix}running_mean": 0 * scale}
            blobs[f"{prefix}running_var"] = 0 * scale + 1
    blobs |= {"conv1_b": np.zeros(8, np.float32), "fc1000_w": np.zeros((10, 4), np.float32)}
    model, variables = init_from_file(config, blobs, jax.random.key(0))
    assert preprocessing_of(model) == (DETECTRON if fused else MSRA)
    assert_trees_equal(variables["params"]["backbone"], theirs["params"]["backbone"])


@pytest.mark.parametrize("norm", ["bn", "sync_bn"])
def test_fused_norms_cannot_be_trained(variant, network, as_blobs, norm):
    """Normalization by batch statistics would divide by the standard deviation twice."""
    blobs = as_blobs(detectron2_names.export_state(network[1]))
    config = variant("bn")
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, norm=norm))
    with pytest.raises(WeightsError, match=rf"fused .*: set model\.backbone\.norm=frozen_bn instead of {norm}"):
        init_from_file(config, {"blobs": blobs}, jax.random.key(0))


def test_errors_name_another_depth_or_norm(variant, network, random_variables):
    config, variables = network
    deeper = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, name="resnet34"))
    last = "set model.backbone.name to the depth of the weights"
    for export in (torchvision_names.export_state, detectron2_names.export_state):
        with pytest.raises(WeightsError, match=f"\n  only the model has these blocks of the backbone: {last}$"):
            init_from_file(deeper, export(variables), jax.random.key(0))
    with pytest.raises(WeightsError, match=f"\n  only the weights have these blocks of the backbone: {last}$"):
        init_from_run(config, deeper, random_variables(deeper), jax.random.key(0), "run")
    with pytest.raises(
        WeightsError, match=r"\n  only the weights have these statistics of batch norm: set model\.back.*$"
    ):
        init_from_run(variant("gn"), config, variables, jax.random.key(0), "run")


def test_incomplete_classifier_is_refused(network):
    config, theirs = network
    state = classifier(torchvision_names.export_state(theirs))
    del state["layer3.1.bn2.bias"]
    state["layer5.0.conv1.weight"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError) as error:
        init_from_file(config, state, jax.random.key(0))
    assert str(error.value).splitlines()[1:] == [
        "  missing: layer3.1.bn2.bias",
        "  unexpected: layer5.0.conv1.weight",
    ]


def test_init_from_run(network):
    """Weights and preprocessing of the run, with new layers for other classes."""
    run, theirs = network
    run = apply_preprocessing(run, MSRA)
    model, variables = init_from_run(with_other_fields(run), run, theirs, jax.random.key(0), "runs/first")
    assert preprocessing_of(model) == MSRA
    assert_trees_equal(variables["params"]["fpn"], theirs["params"]["fpn"])
    assert variables["params"]["box_head"]["logits"]["bias"].shape == (8,)
    smaller = dataclasses.replace(run, box=dataclasses.replace(run.box, hidden=16))
    with pytest.raises(WeightsError, match=r"runs/first: these weights do not fit .*\n.*box_head/deltas/"):
        init_from_run(smaller, run, theirs, jax.random.key(0), "runs/first")
