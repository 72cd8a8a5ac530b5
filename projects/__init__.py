"""Projects that use mrcnn_jax; not part of the package."""
