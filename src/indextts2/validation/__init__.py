"""Golden data: write, read, compare."""
