"""Detection over batches: order, overlap, bounded memory, errors."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from mrcnn_jax.inference import detector
from mrcnn_jax.structures import Detections


def batch(indices, valid=None):
    count = len(indices)
    return detector.ImageBatch(
        images=np.zeros((count, 4, 4, 3), np.uint8),
        image_sizes=np.array([[10 + i, 20] for i in indices], np.int32),
        indices=np.array(indices, np.int32),
        valid=np.ones(count, bool) if valid is None else np.array(valid),
    )


def detect(images, image_sizes):
    """Return the height of the image as scores."""
    count = len(images)
    return Detections(
        np.zeros((count, 2, 4)),
        np.repeat(image_sizes[:, :1], 2, axis=1),
        np.ones((count, 2), int),
        np.zeros((count, 2, 0, 0)),
        np.zeros((count, 2, 0, 3)),
        np.ones((count, 2), bool),
        np.zeros(count, bool),
    )


def test_results_are_in_order_without_empty_slots():
    def finish(index, detections, size):
        time.sleep(0.002 * (index % 3))  # later images would overtake earlier ones
        assert detections.scores.tolist() == [size[0]] * 2 == [10 + index] * 2
        return index

    batches = [batch([3, 1]), batch([4, 0, 2], [True, False, True]), batch([5])]
    assert list(detector.detect_batches(detect, batches, finish)) == [3, 1, 4, 2, 5]


def test_detection_overlaps_with_finishing():
    second_detected = threading.Event()
    seen = []

    def watching(images, image_sizes):
        seen.append(len(images))
        if len(seen) == 2:
            second_detected.set()
        return detect(images, image_sizes)

    def finish(index, detections, size):
        assert second_detected.wait(10), "the first batch was waited for before the second was started"
        return index

    assert list(detector.detect_batches(watching, [batch([0]), batch([1])], finish)) == [0, 1]


def test_only_a_few_batches_are_in_flight():
    started, finished = [], []
    most = 0

    def endless():
        nonlocal most
        for i in range(50):
            started.append(i)
            most = max(most, len(started) - len(finished))
            yield batch([i])

    for index in detector.detect_batches(detect, endless(), lambda index, detections, size: index):
        finished.append(index)
    assert finished == list(range(50))
    assert most <= 4 + 2  # at most 4 threads, one batch waiting, one being produced


def test_errors_of_workers_propagate():
    def finish(index, detections, size):
        raise RuntimeError(f"image {index}")

    with pytest.raises(RuntimeError, match="image 7"):
        list(detector.detect_batches(detect, [batch([7])], finish))
