"""Every error of the project, as one tree, and how a part reports what is not an error to its caller. Imports nothing of ours.

EirError
├── ConfigError           the YAML file: all its problems, each with file, line and what was expected
├── FileError             files that a setting names and that cannot be used; carries the setting
├── SetupFault            what keeps a node from starting and does not go away by itself: to try again is of no use
├── UsageError            wrong arguments of a command
├── IdentifierError       a text that is no IMEI, IMEISV, MEID or IMSI
├── ReleaseRefused        a release that must not change a list; carries a short reason for metrics and scripts
├── EntryRefused          an operator's change of a list that cannot be made
├── StoreError            the store cannot do what was asked; carries the cause
│   ├── GenerationConflict    another loader was faster
│   ├── StoreChanged          the list changed while its pages were read: start over
│   └── NothingToRollBack     no earlier release is kept
└── DiameterError         a fault on the wire; carries the Result-Code and the Failed-AVP that the answer needs
    └── ConnectionFault       the same, and the transport connection must be closed after the answer (if any)
"""

from pathlib import Path
from traceback import walk_tb
from typing import NamedTuple, Protocol

DETAIL_CHARS_MAX = 4096
"""Characters of a text about a refused release: it quotes what somebody delivered."""


class EirError(Exception):
    """Root of every error that this project raises on purpose."""


class Problem(NamedTuple):
    """One thing wrong in a configuration file."""

    file: str
    line: int
    text: str
    """The fault that was found, and what was expected instead."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class FileError(EirError):
    """Files that a setting names and that cannot be used; `key` is the setting."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class ConfigError(EirError):
    """A configuration that cannot be taken over; `problems` holds every fault that was found, in file order."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class SetupFault(EirError):
    """Something that the configuration names is unavailable (a folder, a password file).

    Someone has to mend it before a node can start.
    """


class UsageError(EirError):
    """Wrong arguments of a command."""


class IdentifierError(EirError):
    """A text that is not the identifier that it should be (TS 23.003 clause 6)."""


class ReleaseRefused(EirError):
    """A release that was not loaded; the list in force is untouched.

    `reason` is a short stable word (`bad_signature`, `expired`, `serial`, …) and `detail` says what was found, what was
    expected, and what to do next. `list_name` is None as long as no verified manifest has named one.
    """

    def __init__(self, reason: str, detail: str, *, list_name: str | None = None, serial: int | None = None) -> None:
        self.reason = reason
        self.detail = shown(detail[:DETAIL_CHARS_MAX])
        super().__init__(self.detail)
        self.list_name = list_name
        self.serial = serial
        self.claims: tuple[str, int] | None = None
        """List and serial that a manifest names which was never verified: for people to read, and for no decision."""


def shown(text: str) -> str:
    """A text that every log, file and store takes: octets of a file's name that are not UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def place_of(fault: BaseException) -> str:
    """The type of a fault and the line that raised it; never its text, which may hold an identifier."""
    places = [f" at {frame.f_code.co_filename}:{line}" for frame, line in walk_tb(fault.__traceback__)]
    return type(fault).__name__ + "".join(places[-1:])


def detail_of(fault: BaseException) -> str:
    """The text about a fault in the log: an error of this program's own says what is wrong, of any other the place is told."""
    return str(fault) if isinstance(fault, EirError) else place_of(fault)


def refused_by(fault: Exception) -> ReleaseRefused:
    """The refusal of a release that the program itself fails over (`fault`), with the place; the values at hand are left out."""
    frames = [
        (Path(frame.f_code.co_filename), line, frame.f_code.co_name) for frame, line in walk_tb(fault.__traceback__)
    ]
    package = Path(__file__).parent
    ours = [
        f"{file.relative_to(package.parent)}:{line} in {name}"
        for file, line, name in frames
        if file.is_relative_to(package)
    ]
    place = f" at {ours[-1]}" if ours else ""
    return ReleaseRefused(
        "fault", f"the program failed over it: {type(fault).__name__}{place}; report this, with the release"
    )


class EntryRefused(EirError):
    """An operator's change of a list that would not do what it says, or more than its limits allow; the list is untouched."""


class StoreError(EirError):
    """The store could not do what was asked. `cause` is a short word for metrics (`refused`, `timeout`, `full`, …)."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class GenerationConflict(StoreError):
    """The list changed after the loader saw it and before the write; nothing was written."""

    def __init__(self, detail: str) -> None:
        super().__init__("conflict", detail)


class StoreChanged(StoreError):
    """The list changed while its pages were being read; what was read so far must be thrown away."""

    def __init__(self, detail: str) -> None:
        super().__init__("changed", detail)


class NothingToRollBack(StoreError):
    """The store keeps no release before the one in force."""

    def __init__(self, detail: str) -> None:
        super().__init__("nothing_to_roll_back", detail)


class DiameterError(EirError):
    """A fault in a Diameter message that its sender gets to know (RFC 6733 7).

    `result_code` is the Result-Code of the answer, `failed_avp` the encoded AVPs that its Failed-AVP holds (empty: none),
    `reason` a short word for metrics and logs, `entry` the label of the sender's entry in the peer table (None: none fits), `nearest`
    the label of the entry that would fit but for one condition.
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


class ConnectionFault(DiameterError):
    """A fault after which the byte stream cannot be trusted: answer (if `result_code` is not 0), then close."""


class Report(Protocol):
    """A function that a part calls to report an event; the log makes a line of it, and limits how many there are.

    `reason` is one short word for each cause, `level` a key of the log's levels, `fields` whatever helps to understand the event.
    """

    def __call__(  # noqa: D102 - the class says it
        self, event: str, *, peer: str | None = None, reason: str | None = None, level: str = "info", **fields: object
    ) -> None: ...


def silent(
    event: str, *, peer: str | None = None, reason: str | None = None, level: str = "info", **fields: object
) -> None:
    """Report nothing: for a caller that learns all it needs from results and exceptions."""
