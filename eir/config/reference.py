"""The reference of every key as a page, generated from the table of keys. Knows keys and kinds, and no file."""

from itertools import groupby
from typing import Any

from eir.config.keys import SECTIONS, TABLE
from eir.config.reader import REQUIRED, Key

INTRODUCTION = """\
# Every key of the configuration

`eir config --reference` prints this page, and with `--json` the same as data; `eir config` prints the values in force. `[]` stands for each
entry of a list, `*` for a name of your own. A reload does not take over a key that is marked "restart".
[README.md](README.md) names the pages that have worked examples.
"""


def reference() -> list[dict[str, Any]]:
    """One row for each key, in the order of the sample: key, what its value may be, default, what it is for, restart."""
    whole = {section.path for section in SECTIONS if not section.live}
    return [
        {
            "key": key.path, "value": key.kind.expected, "required": key.required, "default": _default(key), "says": key.says,
            "restart": not key.live or key.path.partition(".")[0] in whole,
        }
        for key in TABLE
    ]  # fmt: skip


def reference_page() -> str:
    """The reference in Markdown, one table for each section of the file."""
    parts = [INTRODUCTION]
    for name, rows in groupby(reference(), lambda row: row["key"].partition(".")[0].removesuffix("[]")):
        parts += [f"## {name}\n", "| Key | Value | Default | What it is for |\n|---|---|---|---|"]
        parts += [
            f"| `{row['key']}` | {row['value']} | {_shown(row)} | {row['says']}{' (restart)' if row['restart'] else ''} |"
            for row in rows
        ]
        parts.append("")
    return "\n".join(parts)


def _default(key: Key) -> Any:
    """Return the default as the file would write it; None if it does not exist or the key is required."""
    if key.default is REQUIRED or key.default is None or key.default == ():
        return None
    return list(map(key.kind.show, key.default)) if key.kind.many else key.kind.show(key.default)


def _shown(row: dict[str, Any]) -> str:
    if row["required"]:
        return "required"
    value = row["default"]
    if value is None:
        return "none"
    words = [
        str(each).lower() if isinstance(each, bool) else str(each)
        for each in (value if isinstance(value, list) else [value])
    ]
    return f"`{', '.join(words)}`"
