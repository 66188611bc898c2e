"""Acceleration and conversion of efficient-kan and pykan models."""

from .accelerate import accelerate, restore

__all__ = ["accelerate", "restore"]
