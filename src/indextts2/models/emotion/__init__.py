"""Emotion matrix, blending, words to vector."""
