"""Weights of other projects: names, layouts, preprocessing, and the file formats that they are stored in."""
