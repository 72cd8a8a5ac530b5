"""HTTP service of a model: `service` answers requests, `run` is the process; batches: `inference.batcher`."""
