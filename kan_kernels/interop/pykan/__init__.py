"""Acceleration and conversion of pykan layers and networks."""
