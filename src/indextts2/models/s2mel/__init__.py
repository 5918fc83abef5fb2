"""Semantic codes and latents to mel: length regulator, DiT, flow matching."""
