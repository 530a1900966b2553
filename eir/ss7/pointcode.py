"""Point codes as people write them: ITU-T 3-8-3 bits (Q.708), ANSI 8-8-8 (T1.111.8). Imports nothing of ours."""

from typing import Final

ITU: Final = "itu"
ANSI: Final = "ansi"
BITS: dict[str, tuple[int, ...]] = {ITU: (3, 8, 3), ANSI: (8, 8, 8)}


def point_code(text: str, variant: str = ITU) -> int:
    """The number of a point code that is written as `1-2-3`, `1.2.3` or a number. Raises ValueError."""
    parts = text.replace(".", "-").split("-")
    bits = BITS[variant] if len(parts) > 1 else (sum(BITS[variant]),)
    if len(parts) != len(bits) or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(text)
    number = 0
    for part, width in zip(parts, bits, strict=True):
        if int(part) >> width:
            raise ValueError(text)
        number = number << width | int(part)
    return number


def point_code_text(number: int, variant: str = ITU) -> str:
    """A point code as people write it."""
    parts = []
    for width in reversed(BITS[variant]):
        parts.append(str(number & (1 << width) - 1))
        number >>= width
    return "-".join(reversed(parts))
