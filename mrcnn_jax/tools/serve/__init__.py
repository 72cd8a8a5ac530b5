"""HTTP service of a model: `service` answers requests, `batcher` runs the model, `run` is the process."""
