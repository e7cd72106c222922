"""Definitions and host settings: schema, loading, checks, writing."""

import os

# Looking for plugins reads every installed distribution's metadata, at each start, and would run their code.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
