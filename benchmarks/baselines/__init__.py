"""Each stage as one would write it first from the paper, with the weights of our module: what we compare with.

Nothing here is made slow on purpose; it recomputes, copies and pads where the plain reading of the paper does.
"""
