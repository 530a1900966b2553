"""Room in a store: what a write needs against what is free, less a reserve. Imports eir.errors; knows no store."""

from eir.errors import StoreError

SMALL_BYTES = 1 << 20
"""A write that needs no more may use the reserve: the history, an operator's entries, a rollback."""
_MB = 1 << 20


def check_room(cause: str, where: str, advice: str, *, needs: int, free: int, reserve: int) -> None:
    """Refuse a write before it begins. Raises StoreError (`cause`) with the figures, all in bytes, and `advice` what to do."""
    if needs > SMALL_BYTES and needs > free - reserve:
        kept = f"{free // _MB:,} MB are free, of which {reserve // _MB:,} MB are kept for the history, removals and rollback"
        raise StoreError(
            cause, f"{where}: this needs about {-(-needs // _MB):,} MB, and {kept}; nothing was changed: {advice}"
        )
