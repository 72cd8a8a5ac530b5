"""Where the metrics of a run go: console, metrics.jsonl, TensorBoard."""
