"""Commands about the feed: a user's line for its file of users."""

import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from eir.commands.output import EXIT_USAGE, fail, say
from eir.sources.feed_users import UsersError, check_name, user_line

PASSWORD_BYTES = 24
FILE_CHARS_MAX = 1024


def user(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The user, as history and metrics call it.")],
    password_file: Annotated[Path | None, typer.Option("--password-file", metavar="FILE", help="Holds the password, on its first line. One is made up and shown on standard error if left out.")] = None,
) -> None:  # fmt: skip
    """Print the line of a user for the file that `feed.users` names.

    The line has a hash of the password, and not the password. A running node takes the file over within a second.
    """
    try:
        check_name(name)
        password = secrets.token_urlsafe(PASSWORD_BYTES) if password_file is None else _first_line(password_file)
        line = user_line(name, password)
    except UsersError as e:
        raise fail(str(e), EXIT_USAGE) from None
    if password_file is None:
        say(f"the password of {name}: {password}")
    sys.stdout.write(f"{line}\n")


def _first_line(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as stream:
            return stream.readline(FILE_CHARS_MAX).rstrip("\r\n")
    except OSError as e:
        raise UsersError(f"{file} cannot be read: {e.strerror}") from None
    except UnicodeDecodeError:
        raise UsersError(f"{file} is not UTF-8") from None
