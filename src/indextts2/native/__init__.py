"""Optional C kernels for the CPU, each with a PyTorch equivalent that is used where the library is missing."""
