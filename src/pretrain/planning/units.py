"""Numbers in readable units; apart from the forecast, so that they load without torch."""


def count(number: float) -> str:
    """Return a number with four digits and a suffix: k, M, B, T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g} {letter}"
    return f"{number:.4g}"


def gib(size: float) -> str:
    """Return bytes in GiB, or in MiB below a tenth of one."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.2f} MiB"


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes, hours or days."""
    for size, unit in ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:.3g} s"


def percent(share: float) -> str:
    """Return a share in percent without rounding what a reader has typed: 95%, 99.9%."""
    return f"{100 * share:.6g}%"
