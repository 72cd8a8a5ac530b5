"""`mrcnn verify` on a server with three generated models, whose AP torchvision's and Detectron2's detections give.

Detections of the reference implementations, in `tests/golden`, are scored by pycocotools on a dataset that is made from
them: every second one is an instance, moved by a few pixels. That is the published AP.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle

import cv2
import numpy as np
import pytest
import safetensors.numpy
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_jax.cli import main
from mrcnn_jax.weights import zoo
from mrcnn_jax.weights.coco_categories import COCO_CATEGORIES, PERSON_KEYPOINTS

pytestmark = pytest.mark.slow

MASK, KEYPOINT = "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"
DETECTRON2 = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
SETTINGS = (  # of the reference runs
    "--config.model.rpn.pre_nms_top_k_test=300",
    "--config.model.rpn.post_nms_top_k_test=200",
    "--config.model.box.max_detections=20",
    "--config.data.shortest_edge_eval=128",
    "--config.data.longest_edge=256",
)


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def xywh(box):
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]


def results(theirs, i, size, category_ids):
    """Result records of image 1 as the reference implementation writes them."""
    packed = theirs.get(f"det{i}_masks_ge_half_packed", theirs.get(f"det{i}_masks_packed"))
    records = []
    for k, (box, label, score) in enumerate(
        zip(theirs[f"det{i}_boxes"], theirs[f"det{i}_labels"], theirs[f"det{i}_scores"], strict=True)
    ):
        record = {"image_id": 1, "category_id": category_ids[label], "score": float(score), "bbox": xywh(box)}
        if packed is not None:
            record["segmentation"] = rle(np.unpackbits(packed[k])[: size[0] * size[1]].reshape(size))
        if f"det{i}_keypoints" in theirs:
            record["keypoints"] = theirs[f"det{i}_keypoints"][k].ravel().tolist()
        records.append(record)
    return records


def instances(records):
    """Annotations: every second detection, moved by 0, 1 or 2 pixels, and two that no detection finds."""
    annotations = []
    for k, record in enumerate(records[::2]):
        shift = k % 3
        x, y, width, height = record["bbox"]
        annotation = {"image_id": 1, "category_id": record["category_id"], "bbox": [x + shift, y, width, height]}
        annotation["area"] = width * height
        if "segmentation" in record:
            annotation["segmentation"] = rle(np.roll(coco_mask.decode(record["segmentation"]), shift, axis=1))
        if "keypoints" in record:
            points = np.reshape(record["keypoints"], (17, 3))
            points[:, 0] += shift / 2
            points[:, 2] = 2
            annotation |= {"keypoints": points.ravel().tolist(), "num_keypoints": 17}
        annotations.append(annotation)
    for side, annotation in zip((9.0, 12.0), annotations[:2], strict=False):
        missed = {"bbox": [1.0, 1.0, side, side], "area": side**2}
        if "segmentation" in annotation:
            x, y = np.indices(np.array(annotation["segmentation"]["size"]))
            missed["segmentation"] = rle((x >= 1) & (x < side + 1) & (y >= 1) & (y < side + 1))
        if "keypoints" in annotation:
            missed["keypoints"] = [5.0, 5.0, 2] * 17
        annotations.append({**annotation, **missed})
    return [{**a, "id": k, "iscrowd": 0} for k, a in enumerate(annotations, 1) if a["category_id"] in COCO_CATEGORIES]


def write_dataset(folder, image, records, *, keypoints):
    """Write a dataset of one image (RGB) in COCO's layout; returns its annotation file."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "val2017").mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "val2017" / "1.png"), np.ascontiguousarray(image[..., ::-1]))
    categories = [{"id": i, "name": name} for i, name in COCO_CATEGORIES.items()]
    if keypoints:
        categories = [{"id": 1, "name": "person", "keypoints": list(PERSON_KEYPOINTS), "skeleton": []}]
    content = {
        "info": {},
        "images": [{"id": 1, "file_name": "1.png", "height": image.shape[0], "width": image.shape[1]}],
        "categories": categories,
        "annotations": instances(records),
    }
    path = folder / "annotations" / f"{'person_keypoints' if keypoints else 'instances'}_val2017.json"
    path.write_text(json.dumps(content))
    return path


def score(path, records, iou_type):
    """AP in percent, by pycocotools."""
    fields = ("image_id", "category_id", "score", {"segm": "segmentation"}.get(iou_type, iou_type))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path)
        found = truth.loadRes([{name: record[name] for name in fields} for record in records])
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap = 100 * evaluation.stats[0]
    assert 10 < ap < 90
    return round(ap, 1)


@pytest.fixture
def publish(download_server, golden, monkeypatch, tmp_path):
    """Serve generated weights under the address of a zoo entry, and publish their AP."""
    for variable in ("MRCNN_JAX_CACHE", "TORCH_HOME", "FVCORE_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def serve(name, keys, aps, disturb=lambda state: None):
        state = golden.recipe().state(json.loads(golden.file(keys).read_text()))
        disturb(state)
        entry = zoo.find(name)
        if entry.source == "torchvision":
            content = safetensors.numpy.save(state)
            digest = hashlib.sha256(content)
        else:
            content = pickle.dumps({"model": state, "__author__": "generated"}, protocol=4)
            digest = hashlib.md5(content)
        download_server.files[entry.url.removeprefix(entry.url[: entry.url.index("/", 8)])] = content
        values = dict(zip(("box_ap", "mask_ap", "keypoint_ap"), aps, strict=True))
        changed = entry._replace(hash_prefix=digest.hexdigest()[:8], **values)
        entries = [changed if other.name == entry.name else other for other in zoo.ENTRIES]
        monkeypatch.setattr(zoo, "ENTRIES", tuple(entries))

    return serve


@pytest.fixture
def torchvision_data(golden, tmp_path):
    """The image whose padded shape alone is that of the reference batch, with boxes, masks and persons."""
    image = golden("tv_model_inputs.npz")["img_u8_1"].transpose(1, 2, 0)
    published = {}
    for name, keypoints in (("maskrcnn", False), ("keypointrcnn", True)):
        records = results(golden(f"tv_model_{name}_eval.npz"), 1, image.shape[:2], range(91))
        path = write_dataset(tmp_path / "coco", image, records, keypoints=keypoints)
        iou_types = ("bbox", "keypoints") if keypoints else ("bbox", "segm")
        published[name] = [score(path, records, iou_type) for iou_type in iou_types]
    (box, mask), (person, keypoint) = published["maskrcnn"], published["keypointrcnn"]
    return tmp_path / "coco", (box, mask, None), (person, None, keypoint)


def test_published_ap_of_torchvision_is_reached(publish, torchvision_data, download_server, tmp_path, capsys):
    folder, mask_aps, keypoint_aps = torchvision_data
    publish(MASK, "tv_keys_maskrcnn.json", mask_aps)
    publish(KEYPOINT, "tv_keys_keypointrcnn.json", keypoint_aps)
    command = ["verify", MASK, KEYPOINT, f"--data={folder}", *SETTINGS]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for name, iou_type, ap in (
        (MASK, "boxes", mask_aps[0]),
        (MASK, "masks", mask_aps[1]),
        (KEYPOINT, "boxes", keypoint_aps[0]),
        (KEYPOINT, "keypoints", keypoint_aps[2]),
    ):
        assert f"| {name} | {iou_type} | {ap:.1f} | " in printed
    assert printed.count("| pass |") == 4
    [first, second] = json.loads((tmp_path / "verify" / "report.json").read_text())
    assert first["passed"]
    assert second["passed"]
    assert len(download_server.requests) == 2
    # Another time nothing is downloaded or computed.
    assert main(command) == 0
    assert capsys.readouterr().out.count("measured before") == 2
    assert len(download_server.requests) == 2


def test_published_ap_of_detectron2_is_reached(publish, golden, tmp_path, capsys):
    image = golden("d2_model_inputs.npz")["img_u8_bgr0"].transpose(1, 2, 0)[..., ::-1]
    records = results(golden("d2_model_mask_rcnn_R_50_FPN_eval.npz"), 0, image.shape[:2], list(COCO_CATEGORIES))
    path = write_dataset(tmp_path / "coco", image, records, keypoints=False)
    aps = (score(path, records, "bbox"), score(path, records, "segm"), None)
    publish(DETECTRON2, "d2_keys_mask_rcnn_R_50_FPN.json", aps)
    assert main(["verify", "mask_rcnn_R_50_FPN_3x", f"--data={tmp_path / 'coco'}", *SETTINGS]) == 0
    assert capsys.readouterr().out.count("| pass |") == 2


def test_disturbed_weights_fail(publish, torchvision_data, capsys):
    """The predictor of boxes is 5 % too large, so boxes move by a part of a pixel."""

    def disturb(state):
        state["roi_heads.box_predictor.bbox_pred.weight"] *= np.float32(1.05)

    folder, aps, _ = torchvision_data
    publish(MASK, "tv_keys_maskrcnn.json", aps, disturb)
    assert main(["verify", MASK, f"--data={folder}", *SETTINGS]) == 1
    assert "**fail**" in capsys.readouterr().out
