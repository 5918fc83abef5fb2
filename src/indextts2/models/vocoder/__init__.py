"""BigVGAN v2."""
