"""The process around the computation: files, compilation cache, profiler and progress."""
