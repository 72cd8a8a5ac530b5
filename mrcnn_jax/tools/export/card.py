"""The model card of a release folder: a README.md with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from mrcnn_jax import __version__
from mrcnn_jax.config import Config
from mrcnn_jax.config.metric_names import METRICS
from mrcnn_jax.errors import format_list

_TEMPLATE = Path(__file__).with_name("card.md")
_MAX_CLASSES = 100  # listed
_KINDS = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}


def model_card(
    config: Config,
    *,
    network: str,
    training: str,
    step: int | None = None,
    data: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Return the text of README.md, in which the author fills in purpose, origin of the data and license.

    Args:
      network, training: summaries, such as "R50-FPN, box mask" and "90k x 16, sgd 0.02, 60k 80k".
      step: number of training steps of the weights; None if `config` is not the one that they were trained with.
      data: what identifies the training data (`Dataset.fingerprint`), if it is known.
      metrics: of an evaluation of these weights, by name, such as "bbox/AP".
    """
    model = config.model
    names = [" ".join(name.split()) for name in model.category_names]
    settings = _inference(config) if step is None else {**_training(config, training, step), **_inference(config)}
    return _TEMPLATE.read_text(encoding="utf-8").format(
        name=config.name,
        network=network,
        version=__version__,
        classes="1 class" if model.num_classes == 1 else f"{model.num_classes:,} classes",
        class_names=format_list(names, _MAX_CLASSES) if names else "without names",
        data=f"{data['images']:,} images with {data['instances']:,} instances" if data else "data that is not recorded",
        results=_results(step, metrics or {}),
        settings="\n".join(f"| {name} | {value} |" for name, value in settings.items()),
    )


def _results(step: int | None, metrics: Mapping[str, float]) -> str:
    """A table with a row for each kind of result; pycocotools marks metrics without ground truth with -1."""
    rows = []
    for kind, label in _KINDS.items():
        if f"{kind}/AP" in metrics:
            values = [metrics.get(f"{kind}/{name}", -1) for name in METRICS[:6]]
            rows.append([label, *("-" if value < 0 else f"{100 * value:.1f}" for value in values)])
    if not rows:
        return "These weights were not evaluated. **Fill in**: `mrcnn eval --model=DIR` prints the tables."
    table = [["", *METRICS[:6]], ["---"] * 7, *rows]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([f"COCO's metrics in percent on the evaluation data of the run, after step {step:,}:", "", *lines])


def _training(config: Config, training: str, step: int) -> dict[str, str]:
    data = config.data
    edges = sorted({min(data.shortest_edge_train), max(data.shortest_edge_train)})
    jitter = data.augment.scale_jitter
    size = f"scale jitter {jitter[0]:g} to {jitter[1]:g}" if jitter else f"shorter side {' to '.join(map(str, edges))}"
    return {
        "training (steps x images, optimizer, schedule)": training,
        "steps of these weights": f"{step:,} of {config.train.steps:,}",
        "images in training": f"{size}, longer side at most {data.longest_edge}",
        "moving average of the weights": f"decay {config.train.ema_decay:g}" if config.train.ema_decay else "none",
        "initial weights": PurePath(config.init).name or "random",
    }


def _inference(config: Config) -> dict[str, str]:
    data = config.data
    return {"images in inference": f"shorter side {data.shortest_edge_eval}, longer side at most {data.longest_edge}"}
