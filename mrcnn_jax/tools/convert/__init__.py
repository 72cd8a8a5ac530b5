"""Conversion of label masks, PASCAL VOC and Cityscapes to COCO JSON: the implementation of `mrcnn convert`."""
