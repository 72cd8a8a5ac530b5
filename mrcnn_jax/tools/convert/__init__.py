"""Other people's formats written as COCO JSON: label images, VOC, Cityscapes. `mrcnn convert`."""
