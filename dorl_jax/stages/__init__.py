"""The stages of a run, one file each: one function with typed settings, usable from Python."""
