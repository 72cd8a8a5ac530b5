"""Readers and writers of weights files. Nothing in a file is executed."""
