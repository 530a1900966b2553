"""Check digit of an IMEI, by the words of the standard, independent of the program's code."""


def check_digit(first14: str) -> int:
    """The Luhn digit over the first 14 digits of an IMEI (TS 23.003 annex B)."""
    total = 0
    for position, digit in enumerate(first14):
        value = int(digit)
        if position % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return -total % 10
