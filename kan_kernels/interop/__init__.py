"""The peers' models: made fast where they are, and carried over."""

from .accelerate import accelerate, restore

__all__ = ["accelerate", "restore"]
