"""What a run leaves behind: its work directory, checkpoints, checksums and averaged weights."""
