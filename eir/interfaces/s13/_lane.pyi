from collections.abc import Callable

# A policy with its lists, and what answers by them.
#
# program, verdicts: see eir.checks.program; how many verdicts there are. lists: for each list its arrays (eir.lists.images.image.Image.lane_arrays),
# or None if it was never loaded, its kind, and of a record of first sightings its days (Image.sightings) and today. keys, are_groups: of the
# dictionary's AVPs in ascending order, 8 bytes each; a byte for each. Raises ValueError for what cannot be a policy.
class Lane:
    def __init__(
        self,
        program: bytes,
        verdicts: int,
        lists: tuple[tuple[tuple[memoryview, ...] | None, int, memoryview | None, int], ...],
        keys: bytes,
        are_groups: bytes,
        sought_device: int,
        sought_sim: int,  # whose messages are for the general path: see eir.checks.trace.TraceFilter.numbers
    ) -> None: ...

    # Answer the messages at `position`, up to the first that is for the general path.
    #
    # terms: see eir.interfaces.s13.lane. decide: (key, IMEI, IMSI, software version, Origin-Host, Origin-Realm, MSISDN) → a verdict as a word, for what is not
    # decided here; None: all get the reply past a limit. telling: for each verdict 0 (the record is not told), 1 (it is plain) or 2; empty:
    # the record is told nothing.
    #
    # Returns the position behind the last answer; the answers; how many they are; for each verdict its number, how many, and of the last one
    # Origin-Host, key and IMSI; and what the record is told of plain verdicts, and of others: their numbers (uint16), and
    # eir.checks.policy.TEXTS lines for each check.
    def take(
        self,
        terms: bytes,
        data: bytes | memoryview,
        position: int,
        messages_max: int,
        decide: Callable[..., int] | None,
        telling: bytes,
    ) -> tuple[int, bytes, int, list[tuple[int, int, str, int, str]], tuple[bytes, bytes], tuple[bytes, bytes]]: ...
