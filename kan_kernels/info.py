"""`python -m kan_kernels.info` prints what `kan_kernels.info()` returns."""

from .diagnostics import info

if __name__ == "__main__":
    print(info())
