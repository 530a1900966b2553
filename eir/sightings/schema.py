"""Schema of the record of checks: columns of the files, and their paths in the state folder.

A row is a group of similar checks within a few minutes (`sightings.window_s`). Files are Parquet, compressed by zstd,
in `STATE/sightings/YYYY-MM-DD/HH-START-UNIQUE.parquet` (UTC; START: the first row's time in microseconds), mode 0600.
An unfinished file has another ending. Data only.
"""

from typing import NamedTuple

HOME_DIGITS = 6
"""Number of digits of an IMSI in the column `home`: MCC and MNC."""


class Column(NamedTuple):
    """Column of the record's files: name, SQL type and meaning."""

    name: str
    kind: str
    """Type in SQL."""
    says: str


COLUMNS = (
    Column("time", "TIMESTAMP", "first check of the group; UTC, in microseconds"),
    Column("last", "TIMESTAMP", "last check of the group"),
    Column("checks", "UINTEGER", "how many checks there were"),
    Column("imei", "VARCHAR", "the identifier as it was sent, 32 characters at most; NULL: none came"),
    Column("device", "BIGINT", "the device's key (eir.device): the first 14 digits; NULL: the identifier is not valid"),
    Column("software_version", "VARCHAR", "NULL: none came"),
    Column("subscriber", "VARCHAR", "keyed hash in hexadecimal digits, or the IMSI, as `sightings.subscribers` says; NULL: none came"),
    Column("home", "VARCHAR", "first 6 digits of the IMSI: MCC and MNC; NULL: none came"),
    Column("msisdn", "VARCHAR", "number of the subscriber as the request has it, in the form of `subscriber`: a keyed hash or digits; NULL: none came, or not known"),
    Column("origin_host", "VARCHAR", "who asked, as the request says: the MME or SGSN, also behind an agent"),
    Column("peer", "VARCHAR", "the configured peer that sent the request, by its label; NULL: not known, as in files from before it was kept"),
    Column("origin_realm", "VARCHAR", "its realm"),
    Column("protocol", "VARCHAR", "`s13`, `n5g`, `gsup` or `map`"),
    Column("access", "VARCHAR", "access network, by the peer's entry (`peers[].access`): `wlan`; NULL: not named, or not known"),
    Column("early", "BOOLEAN", "true: the SIM was not authenticated before the check (`peers[].early`), so that anybody may have named it; NULL: it was, or not known"),
    Column("status", "VARCHAR", "what the policy said: `whitelisted` to `unknown`; `error`: the request named no device"),
    Column("rule", "VARCHAR", "the rule's number, or `default`, `override`, `no_identity`, `bad_identity`; NULL: not known"),
    Column("list", "VARCHAR", "the list that decided; NULL: none"),
    Column("observed", "VARCHAR", "rules under observation that held: RULE=STATUS, and @LIST where there is one, blanks between them; NULL: none"),
)  # fmt: skip

SCHEMA = {column.name: column.kind for column in COLUMNS}
"""Name of each column → type in SQL, in the order of the files."""

FOLDER = "sightings"
"""Name of the folder in the state folder."""
FILES = "*/*.parquet"
"""Pattern of all files, relative to that folder."""
IDENTIFIER_CHARS_MAX = 32
