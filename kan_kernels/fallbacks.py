"""Slower paths taken in this process: each is logged once with its reason, and listed by `kan_kernels.info()`."""

import logging

_log = logging.getLogger("kan_kernels")
_seen: dict[str, str] = {}


def note(what: str, reason: str) -> None:
    """Log and remember a fallback the first time it happens for this reason."""
    if _seen.get(what) != reason:
        _seen[what] = reason
        _log.warning("kan_kernels: %s: %s", what, reason)


def noted() -> dict[str, str]:
    """What fell back so far, and why."""
    return dict(_seen)
