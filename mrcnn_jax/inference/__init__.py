"""Inference: preprocessing, detection in batches, test-time augmentation and postprocessing."""
