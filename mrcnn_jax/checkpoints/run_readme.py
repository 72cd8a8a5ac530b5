"""README.md in the work directory of a run, which describes its files and how to use them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from etils import epath

from mrcnn_jax import __version__
from mrcnn_jax.config import Config
from mrcnn_jax.runtime import files

README = "README.md"
_TEXT = """# {name}

A training run of mrcnn_jax {version}.
{start_command}
## Files

| file | content |
|---|---|
| `config.json` | the configuration, with ids and names of the categories |
| `data.json` | counts and hashes of annotations and images that identify the training data |
| `checkpoints/<step>/` | the newest checkpoints (`train.keep_checkpoints`): parameters, optimizer, moving average |
| `best/<step>/` | the best checkpoint, if `train.best_metric` is set |
| `metrics.jsonl` | training metrics, one line every `train.log_every` steps, see below |
| `evaluations.jsonl` | results on the evaluation dataset, one line each: average precisions, validation losses |
| `tensorboard/` | both of these as curves, and images of detections and ground truth |
| `evaluation/` | the newest evaluation: |
| &nbsp; `results.json` | detections as COCO results |
| &nbsp; `metrics.json` | COCO metrics |
| &nbsp; `classes.json` | COCO metrics of each class |
| &nbsp; `overlays/<image id>.png` | ground truth and detections, side by side |
| &nbsp; `report.html` | tables, curves and images, with `--report` |
| `profile/`, `evaluation/profile/` | profiles of a few steps or batches, with `--profile` |
| `failures/step_<step>.npz` | a step whose loss or gradient was not finite, with everything needed to repeat it |
| `corrupt/<step>/` | damaged checkpoints, which are not used |

Some files are written only when needed. To resume, a run needs
`config.json`, `data.json`, `checkpoints/`, `evaluations.jsonl` and `best/`.

`metrics.jsonl` contains means over the steps since the previous line: `loss` and its parts, `grad_norm` (before
clipping), `num_rois` and `num_positive_rois` (RoIs per batch that the heads are trained on, and those of them with an
object), `images_per_second` and `data_wait_fraction` (the fraction of the time spent waiting for images). It also
contains current values: `learning_rate`, `skipped` (number of steps skipped so far because they were not finite) and
`peak_memory_gib` (of the first process: its fullest device, or its own memory on a CPU).

## Usage

```bash
tensorboard --logdir={folder}   # training curves (pip install tensorboard)
mrcnn eval --workdir={folder} --report   # evaluate again, and write evaluation/report.html
mrcnn eval --workdir={folder} --checkpoint=best
tensorboard --logdir={folder}/profile   # after mrcnn train --profile (pip install tensorboard xprof)
mrcnn predict --model={folder} IMAGES --output=predictions   # files, folders, videos, a camera
mrcnn weights export {folder} weights.safetensors --format=torchvision   # or detectron2
mrcnn replay {folder}/failures/FILE   # find the image and the loss that were not finite
```

```python
import mrcnn_jax as mrcnn

predict = mrcnn.Predictor.from_checkpoint({path!r})
(prediction,) = predict(["photo.jpg"])
```

To resume an interrupted run at the exact next batch, repeat the command that started it. To train longer, add
`--config.train.steps=N`. If the data was moved, set `--config.data.root=DIR`. Other data, or settings that change what
is learned, need a new work directory.
"""


def write(workdir: epath.PathLike, config: Config) -> None:
    """Write README.md. Raises OSError."""
    path = str(workdir)
    text = _TEXT.format(
        name=config.name,
        version=__version__,
        folder=shlex.quote(path),
        path=path,
        start_command=_start_command(),
    )
    files.write_text(epath.Path(workdir) / README, text)


def _start_command() -> str:
    """A paragraph with the command line of this process if it is `mrcnn train` or train.py; otherwise empty."""
    name = Path(sys.argv[0]).name
    if name == "train.py":
        command = ["python", *sys.argv]
    elif name == "mrcnn":
        command = [name, *sys.argv[1:]]
    else:
        return ""
    return f"\nIt was started with\n\n```bash\n{shlex.join(command)}\n```\n"
