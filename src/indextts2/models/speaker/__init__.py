"""CAMPPlus speaker encoder."""
