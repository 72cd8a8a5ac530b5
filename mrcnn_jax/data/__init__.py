"""COCO-style data on the host: checked records, fixed shapes, planned batches. NumPy only; nothing here imports jax."""

from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.dataset import Dataset, load_split
from mrcnn_jax.data.findings import Problem
from mrcnn_jax.data.pipeline import Batches, eval_batches, train_batches
from mrcnn_jax.errors import DataError

__all__ = ["Batches", "Categories", "DataError", "Dataset", "Problem", "eval_batches", "load_split", "train_batches"]
