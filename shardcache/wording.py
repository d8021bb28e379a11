"""Values as text for people. A cache may hold any text, so nothing of it reaches a terminal unescaped."""

from shardcache.errors import printable

_UNITS = ("kB", "MB", "GB", "TB", "PB")


def size(number: float) -> str:
    """Bytes for people: ``1234567`` -> ``1.2 MB``."""
    if number < 1000:
        return f"{number:.0f} B"
    power = 1
    while number / 1000**power >= 999.95 and power < len(_UNITS):
        power += 1
    return f"{number / 1000**power:,.1f} {_UNITS[power - 1]}"


def ratio(raw: int, stored: int) -> str:
    """How many times smaller something has become."""
    return f"{raw / stored:.2f}" if stored else "-"


def saving(raw: int, stored: int) -> str:
    """``3.1 MB for 9.4 MB (ratio 3.03)``."""
    return f"{size(stored)} for {size(raw)} (ratio {ratio(raw, stored)})"


def duration(seconds: float) -> str:
    """A time for people: ``83.4`` -> ``1 min 23 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int, noun: str) -> str:
    """``1 sample``, ``6,900 samples``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def plain(text: str) -> str:
    """A text without line breaks and without what could steer a terminal."""
    return printable(text)


def one_line(text: str) -> str:
    """A text of several lines as one."""
    return plain(" ".join(line.strip() for line in text.splitlines() if line.strip()))
