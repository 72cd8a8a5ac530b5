"""README.md in the folder of a run: what each file there is, and what one can do with them."""

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
{begun}
## What is here

| file | what it is |
|---|---|
| `config.json` | every setting of the run, with ids and names of the categories |
| `data.json` | what identifies the training data: counts, and hashes of annotations and images |
| `checkpoints/<step>/` | all it takes to go on: parameters, optimizer, moving average; the newest few are kept \
(`train.keep_checkpoints`) |
| `best/<step>/` | the best checkpoint so far, where `train.best_metric` names what it is best in |
| `metrics.jsonl` | a line every `train.log_every` steps, see below |
| `evaluations.jsonl` | a line for each measurement on held-back images: average precisions, validation losses |
| `tensorboard/` | both of these as curves, and pictures of what was found beside what is there |
| `evaluation/` | of the newest evaluation: |
| &nbsp; `results.json` | COCO records of all that was found |
| &nbsp; `metrics.json` | COCO's averages |
| &nbsp; `classes.json` | the same for each class |
| &nbsp; `overlays/<image id>.png` | ground truth and what was found, side by side |
| &nbsp; `report.html` | a page of tables, curves and pictures, where it was asked for |
| `profile/`, `evaluation/profile/` | where the time of a few steps or batches went, where `--profile` asked for it |
| `failures/step_<step>.npz` | a step that was not finite, with all it takes to do it again |
| `corrupt/<step>/` | checkpoints that were found damaged, and are not used |

Some appear only when there is something to put in. To go on, a run needs
`config.json`, `data.json`, `checkpoints/`, `evaluations.jsonl` and `best/`.

In `metrics.jsonl` are, as means over the steps since the line before: `loss` and its parts, `grad_norm` (before it is
clipped), `num_rois` and `num_positive_rois` (regions that the heads learned from in a batch, and those of them with an
object), `images_per_second` and `data_wait_fraction` (of the time: spent waiting for images); and, as they were then,
`learning_rate`, `skipped` (steps left out so far because they were not finite) and `peak_memory_gib` (of the fullest
device of the first process; on a CPU of that process).

## What to do with it

In the folder of mrcnn_jax:

```bash
tensorboard --logdir={folder}   # the curves, while it runs (pip install tensorboard)
python eval.py --workdir={folder} --report   # measure again, and write evaluation/report.html
python eval.py --workdir={folder} --checkpoint=best
tensorboard --logdir={folder}/profile   # after train.py --profile (pip install tensorboard xprof)
python predict.py --workdir={folder} PHOTOS --output=found   # files, folders, films, a camera
mrcnn weights export {folder} weights.safetensors --format=torchvision   # or detectron2
mrcnn replay {folder}/failures/FILE   # which image and which loss were not finite
```

```python
import mrcnn_jax as mrcnn

predict = mrcnn.Predictor.from_checkpoint({quoted!r})
(found,) = predict(["photo.jpg"])
```

The command that began the run also goes on with it, at the exact next batch, after an interruption or with more
`--config.train.steps=N`. Its data may have moved (`--config.data.root=DIR`). Settings and data that change what is
learned need a new folder.
"""


def write(workdir: epath.PathLike, config: Config) -> None:
    """Write the file. Raises OSError."""
    quoted = str(workdir)
    text = _TEXT.format(
        name=config.name,
        version=__version__,
        folder=shlex.quote(quoted),
        quoted=quoted,
        begun=_begun(),
    )
    files.write_text(epath.Path(workdir) / README, text)


def _begun() -> str:
    """The command of this process if it is train.py; nothing of a script or a notebook that calls `train`."""
    if Path(sys.argv[0]).name != "train.py":
        return ""
    return f"\nIt was begun with\n\n```bash\n{shlex.join(['python', *sys.argv])}\n```\n"
