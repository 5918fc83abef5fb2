"""Audio in and out, and the features computed from it."""
