"""HAProxy (2.6 or later): a backend for each model, with checks that know where it is ready. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from llamad.export.fleet import SYSTEM, Fleet, Host, Model, made_by

BODY_BYTES = 256 * 1024
"""How much of a request is read to find its model."""
_ABOUT = (
    "Check it:  haproxy -c -f /etc/haproxy/haproxy.cfg -f THIS",
    'Debian:    EXTRAOPTS="-S /run/haproxy-master.sock -f THIS" in /etc/default/haproxy',
    "It has defaults of its own and changes no other proxy, but for tune.bufsize.",
    "",
    "A request goes to a host where its model is ready; where there is none, to one that will load it, always the",
    "same one. The model is that of the header X-Model, of /upstream/NAME/..., of ?model=NAME or of the JSON body,",
    f"whose first {BODY_BYTES // 1024} KiB are looked into. API keys are the hosts' to check: give all the same.",
)
_GLOBAL = f"""
global
    # Requests wait here until their model is known: each takes up to this, and once more for its answer.
    tune.bufsize {BODY_BYTES}
"""
_DEFAULTS = """
defaults llamad-defaults
    mode http
    log global
    option httplog
    # Streams: tokens go out as they come, and may be far apart while a model loads or reads a long prompt. llamad's own
    # limits end what takes too long; a host that is gone is noticed by checks, and by TCP.
    option http-no-delay
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout queue 2m
    timeout http-request 2m
    timeout http-keep-alive 60s
    timeout check 2s
    # What a host that went away has not answered is sent to another one, as long as the client has got nothing.
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response
    http-error status 503 content-type application/json hdr Retry-After 5 string '{"error":{"message":"no host has this\
 model now","type":"unavailable_error","code":"no_host"}}'
"""
_MODEL = """
    option http-buffer-request
    http-request deny deny_status 404 if { path,url_dec -m end /metrics } or { path,url_dec -m sub /admin/ }
    acl is_named var(txn.model) -m found
    acl is_form req.hdr(Content-Type) -m beg -i multipart/
    http-request set-var(txn.model) req.hdr(X-Model) if { req.hdr(X-Model) -m found }
    http-request set-var(txn.model) path,field(3,/),url_dec if !is_named { path -m beg /upstream/ }
    http-request set-var(txn.model) url_param(model),url_dec if !is_named { url_param(model) -m found }
    http-request set-var(txn.model) req.body,json_query('$.model') if !is_named { method POST }
    # A body that did not fit, with its model behind that: to guess one would be worse.
    http-request return status 413 content-type application/json string '{"error":{"message":"send the model first in\
 the body, or in the header X-Model","type":"invalid_request_error","code":"model_not_found"}}' if !is_named !is_form\
 { method POST } { req.body_size gt KEPT }
"""
_CHECK = "    http-check send meth GET uri {path} ver HTTP/1.1 hdr Host localhost\n"
_SERVER = (
    "    default-server check inter {inter} fastinter 500ms downinter {downinter} fall 2 rise 1"
    " init-addr last,libc,none tcp-ut 30s\n"
)


def haproxy(fleet: Fleet) -> str:
    """The configuration, to be given beside an existing one."""
    return "".join(_parts(fleet))


def _parts(fleet: Fleet) -> Iterator[str]:
    yield made_by("haproxy", fleet, _ABOUT)
    yield fleet.host_advice
    yield _GLOBAL
    yield _DEFAULTS
    yield f"\nfrontend llamad from llamad-defaults\n    bind {fleet.listen}"
    yield _MODEL.replace("KEPT", str(BODY_BYTES - 4096))
    for model in fleet.models:
        # No name of ours above; and a line each, for one holds no more than 64 words.
        ready, acl = _backend(model), f"asks_for_{model.name}"
        yield from (f"    acl {acl} var(txn.model) -m str -- {quoted(name)}\n" for name in model.names)
        yield f"    use_backend {ready} if {acl} {{ nbsrv({ready}) gt 0 }}\n"
        yield f"    use_backend {ready}:held if {acl}\n"
    yield "    default_backend llamad:any\n"
    yield "\n# Requests that are for no model of this list, such as /v1/models.\n"
    yield "backend llamad:any from llamad-defaults\n"
    yield from _servers(fleet, "/health", "expect status 200", ("leastconn", "2s", "1s"))
    for model in fleet.models:
        yield f"\n# Hosts where it is ready.\nbackend {_backend(model)} from llamad-defaults\n"
        yield from _servers(fleet, model.health_path, _requests("passed"), ("leastconn", "2s", "1s"))
        yield f"\n# Hosts that let a request wait and load it.\nbackend {_backend(model)}:held from llamad-defaults\n"
        how = (f"hash str({model.name})", "5s", "2s")
        yield from _servers(fleet, model.health_path, _requests("passed|held"), how)


def _servers(fleet: Fleet, path: str, expected: str, how: tuple[str, str, str]) -> Iterator[str]:
    balance, inter, downinter = how
    yield f"    balance {balance}\n"
    if balance.startswith("hash "):
        yield "    hash-type consistent\n"
    yield "    option httpchk\n"
    yield _CHECK.format(path=path)
    yield f"    http-check {expected}\n"
    yield _SERVER.format(inter=inter, downinter=downinter)
    yield from (f"    server {host.word} {host.address}{_tls(host, fleet.tls_ca)}\n" for host in fleet.hosts)


def _requests(words: str) -> str:
    """Not the status alone: a llama-server that owns its address is healthy whatever model it is asked for."""
    return f"""expect rstring '"requests": ?"({words})"'"""


def _tls(host: Host, ca: str) -> str:
    """HAProxy compares a certificate with the name that it asks for (SNI); an IP address it cannot ask for."""
    if not ca:
        return ""
    words = f" ssl verify required ca-file {'@system-ca' if ca == SYSTEM else quoted(ca)}"
    return words if host.is_numeric else f"{words} sni str({host.name}) check-sni {host.name}"


def _backend(model: Model) -> str:
    return f"llamad:{model.name}"


def quoted(text: str) -> str:
    """A word in HAProxy's double quotes."""
    return '"' + "".join(f"\\{char}" if char in '\\"$' else char for char in text) + '"'
