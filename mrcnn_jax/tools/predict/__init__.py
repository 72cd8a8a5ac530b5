"""Prediction on files and cameras, the implementation of `mrcnn predict`."""
