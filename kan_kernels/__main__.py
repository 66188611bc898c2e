"""`python -m kan_kernels` prints `kan_kernels.info()`."""

from .backends import info

print(info())
