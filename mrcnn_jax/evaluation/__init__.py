"""Evaluation: COCO and LVIS metrics of a model on a dataset, and analysis of result records."""
