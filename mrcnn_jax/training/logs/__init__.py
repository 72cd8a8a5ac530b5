"""Logs of a training run: console, metrics.jsonl, TensorBoard."""
