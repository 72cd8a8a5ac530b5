"""Our ONNX files in ONNX Runtime and OpenVINO, beside JAX. Runs in the environment of `benchmarks/onnx_env.sh`.

python -m benchmarks.onnx_runtime detections --run=RUN     # 20 evaluation images of a trained run
python -m benchmarks.onnx_runtime parts                    # R50-FPN: features, RPN and heads at given boxes
python -m benchmarks.onnx_runtime time [--turns=5]         # R50-FPN, one image of 800x1088
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import openvino
from flax import traverse_util

from mrcnn_jax import Predictor, read_image
from mrcnn_jax.inference import single_image
from mrcnn_jax.inference.paste import paste_mask
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.tools.export import onnx_file
from mrcnn_jax.tools.export.program import exported_function
from mrcnn_jax.weights import reference_models

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
SHAPE, NUM_BOXES = (800, 1088), 100


def session(path: Path) -> Callable[..., dict[str, np.ndarray]]:
    """Return a function from arrays to named arrays that runs the file on two threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 3
    runtime = onnxruntime.InferenceSession(path, options)
    names = [output.name for output in runtime.get_outputs()]
    keys = [value.name for value in runtime.get_inputs()]
    return lambda *arrays: dict(zip(names, runtime.run(None, dict(zip(keys, arrays, strict=True))), strict=True))


def openvino_session(path: Path) -> Callable[..., dict[str, np.ndarray]]:
    compiled = openvino.Core().compile_model(
        path, "CPU", {"INFERENCE_NUM_THREADS": 2, "INFERENCE_PRECISION_HINT": "f32"}
    )
    names = [output.any_name for output in compiled.outputs]
    return lambda *arrays: dict(zip(names, compiled(list(arrays)).values(), strict=True))


def generated_model() -> tuple[Any, Any]:
    """R50-FPN of torchvision, 91 classes with the background, with the weights of the reference arrays."""
    spec = importlib.util.spec_from_file_location("recipe", GOLDEN / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    weights = recipe.state(json.loads((GOLDEN / "tv_keys_maskrcnn.json").read_text()))
    config, variables = reference_models.load(weights, "torchvision", "maskrcnn_resnet50_fpn")
    return config.model, variables


def example_image() -> np.ndarray:
    """A random image of blocks, (1, *SHAPE, 3) uint8."""
    small = np.random.default_rng(0).integers(0, 256, (1, SHAPE[0] // 32, SHAPE[1] // 32, 3), np.uint8)
    return small.repeat(32, axis=1).repeat(32, axis=2)


def compare_detections(folder: Path, run: Path) -> None:
    predictor = Predictor.from_checkpoint(run)
    config = predictor.config
    images = sorted((Path(config.data.root) / config.data.eval.images).iterdir())[:20]
    from mrcnn_jax.checkpoints.manager import load_variables

    onnx_file.write_onnx(folder / "run.onnx", *_model(load_variables(run)), config.data.buckets[0])
    print(f"{(folder / 'run.onnx').stat().st_size / 1e6:.1f} MB")
    run_file, differences, count = session(folder / "run.onnx"), np.zeros(3), 0
    for path in images:
        pixels = read_image(path)
        batch, size = single_image.prepare(pixels, 0, config), np.array([pixels.shape[:2]], np.int32)
        (ours,) = predictor([pixels])
        theirs = run_file(batch.images, batch.image_sizes, size, np.array(0, np.float32), np.array(1000, np.int32))
        valid = theirs["valid"][0]
        assert np.array_equal(ours.category_ids, theirs["category_ids"][0][valid]), path
        masks = [
            paste_mask(mask, box, ours.image_size, ours.paste_rule)
            for mask, box in zip(theirs["masks"][0][valid], theirs["boxes"][0][valid], strict=True)
        ]
        wrong = sum(_different_pixels(*pair) for pair in zip(masks, ours.regions(), strict=True))
        differences = np.maximum(
            differences,
            [
                np.abs(ours.boxes - theirs["boxes"][0][valid]).max(initial=0),
                np.abs(ours.scores - theirs["scores"][0][valid]).max(initial=0),
                wrong / max(1, sum(region.pixels.sum() for region in ours.regions())),
            ],
        )
        count += len(ours)
    print(
        f"{len(images)} images, {count} detections: boxes {differences[0]:.1e} px, scores {differences[1]:.1e},"
        f" different pixels of masks {100 * differences[2]:.3f} %"
    )


def _model(loaded: tuple[Any, Any]) -> tuple[Any, Any]:
    return loaded[0].model, loaded[1]


def _different_pixels(a: Any, b: Any) -> int:
    if (a.top, a.left, a.pixels.shape) != (b.top, b.left, b.pixels.shape):
        return a.pixels.sum() + b.pixels.sum()
    return (a.pixels != b.pixels).sum()


def compare_parts(folder: Path) -> None:
    config, variables = generated_model()
    model = build_model(config)
    rng = np.random.default_rng(1)
    corners, sides = rng.uniform(0, 700, (1, NUM_BOXES, 2)), rng.uniform(8, 600, (1, NUM_BOXES, 2))
    boxes = np.concatenate([corners, np.minimum(corners + sides, SHAPE[::-1])], axis=-1).astype(np.float32)

    def parts(images: Any, sizes: Any, boxes: Any) -> dict[str, Any]:
        def part(method: Any, *arguments: Any) -> Any:
            return model.apply(variables, *arguments, method=method)

        features = part(model.features, images, sizes)
        rpn = part(model.rpn, features, images.shape[1:3])
        class_logits, deltas = part(model.box, part(model.roi_features, features, boxes, config.box.pool_size))
        pooled = part(model.roi_features, features, boxes, config.mask.pool_size)
        masks = part(model.mask, pooled, jnp.ones(NUM_BOXES, jnp.int32))
        arrays = {f"features P{level}": array for level, array in enumerate(features, start=2)}
        arrays["RPN logits"], arrays["RPN deltas"] = (jnp.concatenate(x, axis=1) for x in (rpn.logits, rpn.deltas))
        return arrays | {"class logits": class_logits, "box deltas": deltas, "mask logits": masks}

    arguments = [example_image(), np.array([SHAPE], np.int32), boxes]
    specs = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in zip("isb", arguments, strict=True)}
    (folder / "parts.onnx").write_bytes(onnx_file.convert(parts, specs, config).SerializeToString())
    ours, theirs = jax.jit(parts)(*arguments), session(folder / "parts.onnx")(*arguments)
    for name in ours:
        difference, largest = np.abs(ours[name] - theirs[name]).max(), np.abs(ours[name]).max()
        print(f"| {name} | {difference:.1e} | {largest:.1f} | {difference / largest:.1e} |")


def compare_time(folder: Path, turns: int) -> None:
    config, variables = generated_model()
    path = folder / "r50.onnx"
    start = time.perf_counter()
    onnx_file.write_onnx(path, config, variables, SHAPE)
    print(f"written in {time.perf_counter() - start:.0f} s: {path.stat().st_size / 1e6:.1f} MB,", end=" ")
    print(f"{len(onnx.load(path).graph.node)} nodes")
    weights = traverse_util.flatten_dict(variables, sep="/")
    size = np.array([SHAPE], np.int32)
    arguments = [example_image(), size, size, np.zeros((), np.float32), np.array(1000, np.int32)]
    program = jax.jit(exported_function(config))
    sides: dict[str, Callable[[], Any]] = {"ours": lambda: jax.block_until_ready(program(weights, *arguments))}
    for name, load in {"ONNX Runtime": session, "OpenVINO": openvino_session}.items():
        run = load(path)
        sides[name] = lambda run=run: run(*arguments)
    results = {name: jax.tree.map(np.asarray, run()) for name, run in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        same = np.abs(results[name]["scores"] - results["ours"]["scores"]).max()
        print(f"| {name} | {np.median(values):.2f} ({min(values):.2f}) | {same:.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("detections", "parts", "time"))
    parser.add_argument("--run", type=Path, help="work directory of a trained run")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("."), help="where the ONNX files are written")
    options = parser.parse_args()
    if options.what == "detections":
        compare_detections(options.folder, options.run)
    elif options.what == "parts":
        compare_parts(options.folder)
    else:
        compare_time(options.folder, options.turns)


if __name__ == "__main__":
    main()
