"""Other people's formats written as COCO JSON: label images, VOC, Cityscapes. `python -m mrcnn_jax.data.convert`."""
