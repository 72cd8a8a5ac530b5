"""Search for the padded image shapes with the least padding on a dataset: the implementation of `mrcnn plan`."""
