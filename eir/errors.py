"""Exceptions of the project in one hierarchy, and the type of the callback that reports events.

EirError
├── ConfigError           all problems of the YAML file, each with file, line and expected value
├── FileError             unusable files that a setting names; has the setting
├── SetupFault            a fault that prevents a node's start and needs an operator, so retries are useless
├── UsageError            wrong arguments of a command
├── IdentifierError       a text that is not an IMEI, IMEISV, MEID or IMSI
├── ReleaseRefused        a rejected release; has a reason word for metrics and scripts
├── EntryRefused          a rejected change of a list by an operator
├── StoreError            a failure of the store; has the cause
│   ├── GenerationConflict    another loader changed the list first
│   ├── StoreChanged          the list changed while its pages were read: read again
│   └── NothingToRollBack     no earlier release is stored
└── DiameterError         a fault of a message; has the Result-Code and the Failed-AVP for the answer
    └── ConnectionFault       a fault after which the transport connection must be closed
"""

from pathlib import Path
from traceback import walk_tb
from typing import NamedTuple, Protocol

DETAIL_CHARS_MAX = 4096
"""Maximum length of the detail of a refusal, which quotes delivered data."""


class EirError(Exception):
    """Base class of all errors that this project raises deliberately."""


class Problem(NamedTuple):
    """Problem in a configuration file, with file name and line."""

    file: str
    line: int
    text: str
    """Fault and expected value."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class FileError(EirError):
    """Error for an unusable file; `key` is the setting that names the file."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class ConfigError(EirError):
    """Error for an invalid configuration; `problems` has every fault in file order."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class SetupFault(EirError):
    """Error for a missing or unusable resource that the configuration names (a folder, a password file).

    An operator must repair it before a node can start.
    """


class UsageError(EirError):
    """Error for wrong arguments of a command."""


class IdentifierError(EirError):
    """Error for a text that is not the expected identifier (TS 23.003 clause 6)."""


class ReleaseRefused(EirError):
    """Error for a rejected release; the list in force is unchanged.

    `reason` is a stable word (`bad_signature`, `expired`, `serial`, …). `detail` contains the problem, the expectation
    and the remedy. `list_name` is `None` unless a verified manifest names the list.
    """

    def __init__(self, reason: str, detail: str, *, list_name: str | None = None, serial: int | None = None) -> None:
        self.reason = reason
        self.detail = escape_invalid(detail[:DETAIL_CHARS_MAX])
        super().__init__(self.detail)
        self.list_name = list_name
        self.serial = serial
        self.claims: tuple[str, int] | None = None
        """List and serial in an unverified manifest: for people only, never for a decision."""
        self.digest: str | None = None
        """SHA-256 of the verified manifest."""

    def name_release(self, list_name: str, serial: int, digest: str | None = None) -> None:
        """Store in this error the list name and the serial of the rejected release, whose manifest is verified, and the manifest's digest."""
        self.list_name, self.serial, self.digest = list_name, serial, digest or self.digest

    def name_claims(self, claims: tuple[str, int], advice: str = "") -> None:
        """Store in this error the list name and the serial of an unverified manifest, and append advice to the error's detail."""
        self.claims = claims
        self.detail += advice


def escape_invalid(text: str) -> str:
    """Escape bytes that are not valid UTF-8, so that the text can be logged and stored."""
    return text.encode("utf-8", "backslashreplace").decode()


def place_of(fault: BaseException) -> str:
    """Return the type of an exception with the file and line that raised it.

    The message is omitted, because it may contain an identifier.
    """
    place = ""
    for frame, line in walk_tb(fault.__traceback__):
        place = f" at {frame.f_code.co_filename}:{line}"
    return f"{type(fault).__name__}{place}"


def detail_of(fault: BaseException) -> str:
    """Return the text that the log shows for an exception: the message of an EirError, or type and code line of another exception."""
    return str(fault) if isinstance(fault, EirError) else place_of(fault)


def refused_by(fault: Exception) -> ReleaseRefused:
    """Convert an unexpected exception during the load of a release to a rejection of this release (ReleaseRefused).

    The error names the last line of this package in the traceback, but no values of the release.
    """
    package = Path(__file__).parent
    place = ""
    for frame, line in walk_tb(fault.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(package):
            place = f" at {file.relative_to(package.parent)}:{line} in {frame.f_code.co_name}"
    text = f"internal fault of the program: {type(fault).__name__}{place}"
    return ReleaseRefused("fault", f"{text}; report it with the release")


class EntryRefused(EirError):
    """Error for an operator's change that the program rejects: it would have no effect, or is not permitted. The list is unchanged."""


class StoreError(EirError):
    """Error of the store. `cause` is a word for metrics, such as `refused`, `timeout` or `full`."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class GenerationConflict(StoreError):
    """Error for a write to a list that another writer has changed since this writer read it; nothing was written."""

    def __init__(self, detail: str) -> None:
        super().__init__("conflict", detail)


class StoreChanged(StoreError):
    """Error for a list that changed while its pages were read; the pages must be discarded."""

    def __init__(self, detail: str) -> None:
        super().__init__("changed", detail)


class NothingToRollBack(StoreError):
    """Error for a rollback without a stored earlier release."""

    def __init__(self, detail: str) -> None:
        super().__init__("nothing_to_roll_back", detail)


class DiameterError(EirError):
    """Fault of a Diameter message that is reported to its sender (RFC 6733 7).

    `result_code` is the Result-Code of the answer, `failed_avp` the encoded AVPs of its Failed-AVP (empty: none),
    `reason` a short word for metrics and logs, `entry` the label of the sender's entry in the peer table (None: none
    matches), `nearest` the label of the entry that matches except for one condition.
    """

    def __init__(
        self, result_code: int, reason: str, detail: str = "", *, failed_avp: bytes = b"", entry: str | None = None,
        nearest: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(detail or reason)
        self.result_code = result_code
        self.reason = reason
        self.failed_avp = failed_avp
        self.entry = entry
        self.nearest = nearest

    def name_entry(self, entry: str | None, nearest: str | None = None) -> None:
        """Store in this error two labels of the peer table: of the entry that matches the sender, and of the entry that almost matches."""
        self.entry, self.nearest = entry, nearest


class ConnectionFault(DiameterError):
    """Fault after which the byte stream is unusable, so that the node must close the connection.

    If `result_code` is not 0, the node sends an answer first.
    """


class Report(Protocol):
    """Type of the function `report`, which writes an event to the log. The log limits the rate of lines.

    `reason` is a short word for each cause, `level` a key of the log's levels, `fields` further values.
    """

    def __call__(  # noqa: D102 - see the class
        self, event: str, *, peer: str | None = None, reason: str | None = None, level: str = "info", **fields: object
    ) -> None: ...


def silent(
    event: str, *, peer: str | None = None, reason: str | None = None, level: str = "info", **fields: object
) -> None:
    """Ignore an event. Callers that log nothing pass this function as their `Report` callback."""
