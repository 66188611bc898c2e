"""Shared utilities: argument checks, autocast, errors under torch.compile, DTensors, and memory layouts of gradients."""
