"""What `mrcnn export` writes besides the weights."""
