"""`python -m eir`: the same as the `eir` command."""

from eir.cli import main

main()
