"""Runtime support: files, compilation cache, compilation counter, profiler and progress display."""
