"""The operators as Triton kernels, imported with the first tensor on a GPU. `launch.py` is its public face."""
