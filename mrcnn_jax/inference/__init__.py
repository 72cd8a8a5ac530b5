"""From images to predictions: preprocessing, detection in batches, test-time augmentation, pasting."""
