"""`python -m kan_kernels` prints what `kan_kernels.info()` returns."""

from .diagnostics import info

print(info())
