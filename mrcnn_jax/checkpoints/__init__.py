"""The work directory of a run: configuration, checkpoints, checksums, and averaged weights."""
