"""A limit on the server's answers: a value longer than any of ours ends the connection. Knows no command."""

from redis.asyncio.connection import DefaultParser
from redis.exceptions import RedisError

from eir.stores.records import VALUE_BYTES_MAX


class TooLong(RedisError):
    """A value in the server is longer than any page or record of ours."""


class BoundedParser(DefaultParser):  # type: ignore[misc, valid-type]  # the one that redis chose, as it found hiredis
    """Parses answers as redis does.

    It holds no more of one value than VALUE_BYTES_MAX and the bytes that came with it.
    """

    async def read_from_socket(self) -> bool:
        """Take some bytes more. Raises TooLong."""
        await super().read_from_socket()
        if self._reader.len() > VALUE_BYTES_MAX:
            raise TooLong(f"a value is longer than {VALUE_BYTES_MAX >> 20} MB, as none of EIR is")
        return True
