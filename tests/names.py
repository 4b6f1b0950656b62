"""Names of parametrised tests that are the same in every process."""

import re

__all__ = ["label"]


def label(value: object) -> str:
    """The value in words, without the addresses of functions, which differ between test processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))[:80]
