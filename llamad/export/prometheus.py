"""Prometheus: what to scrape, and the rules that come with llamad. Pure."""

from __future__ import annotations

import json

from llamad.export.fleet import SYSTEM, Fleet, made_by

RULES = "/usr/share/llamad/prometheus/llamad.rules.yml"
DASHBOARD = "/usr/share/llamad/grafana/llamad.json"
_ABOUT = (
    "Put both sections into those of /etc/prometheus/prometheus.yml. Check it:  promtool check config prometheus.yml",
    f"The rules are shipped with llamad: copy them where Prometheus runs. Grafana's dashboard: {DASHBOARD}",
)
_TEXT = """
rule_files:
  - {rules}

scrape_configs:
  - job_name: llamad
    scrape_interval: 15s
    # llama-server is asked too, for two seconds at most.
    scrape_timeout: 10s
{tls}    # Where there are API keys, /metrics asks for one:
    # authorization:
    #   credentials_file: /etc/prometheus/llamad.key
    static_configs:
      - targets:
{targets}"""


def prometheus(fleet: Fleet) -> str:
    """`rule_files` and `scrape_configs`. Models need not be named: each series has the label `model`."""
    targets = "".join(f"          - {json.dumps(host.address)}\n" for host in fleet.hosts)
    tls = "    scheme: https\n" if fleet.tls_ca else ""
    if fleet.tls_ca not in ("", SYSTEM):
        tls += f"    tls_config:\n      ca_file: {json.dumps(fleet.tls_ca)}\n"
    return made_by("prometheus", fleet, _ABOUT) + _TEXT.format(rules=RULES, targets=targets, tls=tls)
