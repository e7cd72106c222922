"""LiteLLM's proxy: each model on each host. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator

from llamad.export.fleet import SYSTEM, Fleet, made_by

_ABOUT = (
    "For:  litellm --config THIS    with LLAMAD_API_KEY in its environment (any word where the hosts ask for no key).",
    "",
    "LiteLLM learns from failures: a host that twice refuses or does not answer gets no request for that model for",
    "10 s. Its own health checks generate tokens, and so load every model: they stay off here.",
)
_SETTINGS = """
router_settings:
  routing_strategy: least-busy
  num_retries: 2
  retry_after: 1
  allowed_fails: 1
  cooldown_time: 10
  # Requests wait at the hosts while a model loads, and llamad ends what takes too long.
  timeout: 3600
  stream_timeout: 3600
"""
_GENERAL = """
general_settings:
  background_health_checks: false
"""


def litellm(fleet: Fleet) -> str:
    """The whole of a `config.yaml`."""
    return "".join(_parts(fleet))


def _parts(fleet: Fleet) -> Iterator[str]:
    yield made_by("litellm", fleet, _ABOUT)
    if fleet.tls_ca not in ("", SYSTEM):
        yield f"# SSL_CERT_FILE={fleet.tls_ca} in its environment: the authority of the hosts' certificates.\n"
    yield "\nmodel_list:\n"
    for model in fleet.models:
        for host in fleet.hosts:
            yield f"  - model_name: {json.dumps(model.name)}\n"
            yield "    litellm_params:\n"
            yield f"      model: {json.dumps(f'openai/{model.name}')}\n"
            yield f"      api_base: {json.dumps(f'{fleet.scheme}://{host.address}/v1')}\n"
            yield "      api_key: os.environ/LLAMAD_API_KEY\n"
    yield _SETTINGS
    aliases = [(alias, model.name) for model in fleet.models for alias in model.aliases]
    if aliases:
        yield "  model_group_alias:\n"
        yield from (f"    {json.dumps(alias)}: {json.dumps(name)}\n" for alias, name in aliases)
    yield _GENERAL
