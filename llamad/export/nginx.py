"""nginx (the open source one): an upstream for each model, with checks by what happens to requests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llamad.export.fleet import SYSTEM, Fleet, Model, made_by
from llamad.units import pad

_BUCKET_BYTES = 64
SYSTEM_FILE = "/etc/ssl/certs/ca-certificates.crt"
_ABOUT = (
    "For the http context: /etc/nginx/conf.d/llamad.conf. Check it:  nginx -t",
    "",
    "The model is that of the header X-Model, of /upstream/NAME/... or of ?model=NAME: nginx looks into no body. A",
    "request without any of these goes to any host, which must have its model. nginx learns from failures alone: a",
    "host that does not answer, or answers 502, 503 or 504, gets no request for that model for 10 s, and the request",
    "goes to the next host. Which host has a model ready it cannot know, so that hosts which load on demand will all",
    "load it: where that matters, use HAProxy (`llamad export haproxy`).",
    "API keys are the hosts' to check: give all the same.",
)
_SERVER = """
server {{
    listen {listen};
    client_max_body_size 64m;

    location ~ (/metrics$|/admin/) {{ return 404; }}
    location / {{
        proxy_pass {scheme}://$llamad_upstream;{tls}
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host {host};
        # Streams: tokens go out as they come, and may be far apart while a model loads or reads a long prompt.
        proxy_buffering off;
        proxy_connect_timeout 2s;
        proxy_read_timeout 1h;
        proxy_send_timeout 2m;
        # Tried again only where the client has got nothing.
        proxy_next_upstream error timeout http_502 http_503 http_504 http_404 non_idempotent;
        proxy_next_upstream_tries {tries};
    }}
}}
"""


def nginx(fleet: Fleet) -> str:
    """The configuration, for a folder that the `http` section includes."""
    return "".join(_parts(fleet))


def _parts(fleet: Fleet) -> Iterator[str]:
    yield made_by("nginx", fleet, _ABOUT)
    yield fleet.host_advice
    yield "\n# The name that a request gives, before it is looked up.\n"
    yield "map $uri $llamad_in_path {\n    default $arg_model;\n"
    yield '    "~^/upstream/(?<llamad_name>[^/]+)" $llamad_name;\n}\n'
    yield "map $http_x_model $llamad_model {\n    default $http_x_model;\n    \"\" $llamad_in_path;\n}\n"
    yield _room_for(name for model in fleet.models for name in model.names)
    yield "map $llamad_model $llamad_upstream {\n    default llamad_any;\n"
    owners = {name.lower(): (name, model) for model in reversed(fleet.models) for name in reversed(model.names)}
    yield from (f"    {quoted(name)} {_upstream(model)};\n" for name, model in reversed(owners.values()))
    yield "}\n"
    yield from _pool("llamad_any", fleet)
    for model in fleet.models:
        yield from _pool(_upstream(model), fleet)
    yield _SERVER.format(
        listen=fleet.listen,
        scheme=fleet.scheme,
        tls=_tls(fleet.tls_ca),
        tries=min(3, len(fleet.hosts)),
        host="$http_host",
    )


def _tls(ca: str) -> str:
    """nginx compares the certificates of all hosts with one name."""
    if not ca:
        return ""
    file = SYSTEM_FILE if ca == SYSTEM else ca
    lines = (
        "# The certificate of each host must have this name too.",
        "proxy_ssl_name llamad;",
        "proxy_ssl_server_name on;",
        "proxy_ssl_verify on;",
        "proxy_ssl_verify_depth 3;",
        f"proxy_ssl_trusted_certificate {quoted(file)};",
    )
    return "".join(f"\n        {line}" for line in lines)


def _pool(name: str, fleet: Fleet) -> Iterator[str]:
    yield f"\nupstream {name} {{\n    zone {name} 64k;\n    least_conn;\n"
    yield from (f"    server {host.address} max_fails=1 fail_timeout=10s;\n" for host in fleet.hosts)
    yield "    keepalive 32;\n    keepalive_timeout 60s;\n}\n"


def _room_for(names: Iterable[str]) -> str:
    """nginx refuses a map with a name that does not fit into a bucket, by default 64 bytes with two pointers."""
    needed = max((16 + pad(len(name) + 2, 8) for name in names), default=0)
    return f"map_hash_bucket_size {1 << (needed - 1).bit_length()};\n" if needed > _BUCKET_BYTES else ""


def _upstream(model: Model) -> str:
    return f"llamad_model_{model.name}"


def quoted(text: str) -> str:
    r"""A source value of a `map`, as it is: a leading `~` is a pattern there, and `\` goes before its special words.

    Values are compared without regard to case, so that a file must not have two that differ in that only.
    """
    escaped = "".join(f"\\{char}" if char in '\\"' else char for char in text)
    special = text.startswith(("~", "\\")) or text in ("default", "hostnames", "include", "volatile")
    return f'"\\\\{escaped}"' if special else f'"{escaped}"'
