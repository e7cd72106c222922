"""`python -m llamad`."""

from llamad.cli.main import entry

entry()
