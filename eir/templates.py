"""Templates of pages (jinja2). Loading jinja2 takes 0.1 s, so that only a process with pages imports this file."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def page_templates(module: str) -> Environment:
    """Return the templates in the folder of a module (`__file__`). Each value is escaped, and an unknown name is an error."""
    return Environment(
        loader=FileSystemLoader(Path(module).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
