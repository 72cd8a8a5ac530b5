"""`python -m mrcnn_jax.data.plan`: the few padded shapes that waste least on a data set, and what each choice costs."""
