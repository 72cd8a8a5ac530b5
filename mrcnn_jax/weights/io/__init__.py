"""Reads weight files of other programs. Nothing in a file is executed."""
