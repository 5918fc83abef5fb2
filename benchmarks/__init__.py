"""Measurements: each prints a table and one JSON line, and names the machine and the commit."""
