"""The JSON schema of `llamad doctor --json`, from the models; docs/make-schemas writes it."""

from __future__ import annotations

import json

from llamad.service.doctor.finding import Report


def schema_text() -> str:
    """The schema as docs/schema/doctor.json has it."""
    schema = Report.model_json_schema(mode="serialization")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "llamad doctor --json"}
    return json.dumps({**schema, **head}, indent=2, sort_keys=True) + "\n"
