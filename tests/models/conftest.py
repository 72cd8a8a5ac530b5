"""The tiny test model with five classes, its variables, and compiled inference."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from mrcnn_jax.inference.detect import detect
from mrcnn_jax.models.mask_rcnn import build_model, init_variables


@pytest.fixture(scope="session")
def model_config(tiny_model_config):
    return dataclasses.replace(tiny_model_config, num_classes=5)


@pytest.fixture(scope="session")
def model(model_config):
    return build_model(model_config)


@pytest.fixture(scope="session")
def variables(model):
    return init_variables(model, jax.random.key(0))


@pytest.fixture(scope="session")
def compiled_detect(model):
    """Compiled `detect(variables, images, image_sizes)` of the tiny model."""
    return jax.jit(functools.partial(detect, model))


@pytest.fixture(scope="session")
def padded_images():
    """Two padded images (2, 64, 64, 3) with sizes 40 x 64 and 64 x 50."""
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    return images, np.int32([[40, 64], [64, 50]])
