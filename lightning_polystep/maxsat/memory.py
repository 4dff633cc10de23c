"""Whether a formula fits into this machine's memory, told before it is tried.

Where memory is promised before it is used, nothing is raised: the process would be killed, without a word.
"""

import os

# What reading and searching take in all, generously: per byte of the file, and per variable.
_PER_BYTE, _PER_VARIABLE = 8, 80


def installed() -> int:
    """Return the bytes of memory; 2^62 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**62


def most_bytes() -> int:
    """Return the size of the largest file, decompressed, that fits."""
    return installed() // _PER_BYTE


def wanting(variables: int, size: int) -> str:
    """Return a sentence that says what is wanting; "" where a formula fits.

    Args:
        variables: Of the formula.
        size: Bytes of its file, decompressed.

    Example:
        >>> wanting(3, 40)
        ''
    """
    needed = _PER_BYTE * size + _PER_VARIABLE * variables
    if needed <= installed():
        return ""
    return (
        f"{variables:,} variables and {size:,} bytes take about {needed / 1e9:.0f} GB of memory, and this machine has "
        f"{installed() / 1e9:.0f} GB."
    )
