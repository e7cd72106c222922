"""The host: what must be installed on it, and what it knows that a build needs (mirror, proxies, pip's settings)."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from bed.recipe import SUITE
from bed.report import BedError, say

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "LLAMAD_BED_MIRROR"
# What a host of another distribution falls back to: Debian's own front door.
_DEFAULT_MIRROR = "http://deb.debian.org/debian"

# A file that each package brings -> the package.
_NEEDED: Mapping[Path, str] = {
    Path("/usr/bin/mmdebstrap"): "mmdebstrap",
    Path("/usr/bin/systemd-nspawn"): "systemd-container",
    KEYRING: "debian-archive-keyring",
    Path("/usr/bin/nsenter"): "util-linux",
}

_DEBIAN_SUITE = re.compile(
    r"(bookworm|trixie|forky|duke|sid|stable|testing|unstable)(-updates|-backports|-proposed-updates)?$"
)


def require_root(command: str) -> None:
    """Raise BedError, with the line to type, unless this is root."""
    if os.geteuid() != 0:
        msg = f"{command} builds and boots a container, which takes root: sudo {command}"
        raise BedError(msg, exit_status=77)


def install_needed() -> None:
    """Install with apt what the bed needs and the host lacks. Raises BedError where that fails."""
    missing = sorted({package for path, package in _NEEDED.items() if not path.exists()})
    if not missing:
        return
    if not shutil.which("apt-get"):
        msg = f"the test bed needs Debian or Ubuntu: there is no apt-get here to install {' '.join(missing)} with"
        raise BedError(msg, exit_status=69)
    say(f"installing on this machine: {' '.join(missing)}")
    if _apt_get("install", "--no-install-recommends", *missing).returncode == 0:
        return
    # The usual reason on a fresh machine: no package lists yet, or old ones.
    say("refreshing the package lists first: apt-get update")
    _apt_get("update")
    done = _apt_get("install", "--no-install-recommends", *missing)
    if done.returncode != 0:
        msg = f"cannot install {' '.join(missing)}:\n{_last_lines(done.stdout)}"
        raise BedError(msg)


def _apt_get(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=300", verb, *words],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _last_lines(text: str, count: int = 15) -> str:
    return "\n".join(text.rstrip().splitlines()[-count:])


def architecture() -> str:
    """Debian's name of this machine's architecture."""
    done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def mirror() -> str:
    """The URL of a Debian mirror that carries the suite: the admin's choice, else one of the host's own sources.

    Raises BedError, naming the variable to set, when none of them answers.
    """
    chosen = os.environ.get(MIRROR_VARIABLE)
    tried = [chosen] if chosen else [*_sources(Path("/etc/apt")), _DEFAULT_MIRROR]
    for url in dict.fromkeys(url.rstrip("/") for url in tried):
        if _carries_suite(url):
            return url
    msg = f"no Debian mirror with {SUITE} answers (tried {', '.join(tried)}): set {MIRROR_VARIABLE} to the URL of one"
    raise BedError(msg, exit_status=69)


def _carries_suite(url: str) -> bool:
    """Ask with apt's own downloader: it knows the host's proxies and certificates."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # apt's downloader drops to a user of its own
        command = [
            "/usr/lib/apt/apt-helper",
            "download-file",
            f"{url}/dists/{SUITE}/InRelease",
            f"{folder}/InRelease",
        ]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _sources(etc_apt: Path) -> Iterator[str]:
    """URLs of Debian archives among the host's apt sources, those of other archives left out."""
    files = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    for path in files:
        if path.suffix == ".list" and path.is_file():
            entries = _one_line_entries(path.read_text())
        elif path.suffix == ".sources" and path.is_file():
            entries = _deb822_entries(path.read_text())
        else:
            continue
        for url, suites, components in entries:
            if "main" in components and any(map(_DEBIAN_SUITE.match, suites)):
                yield from _resolved(url)


def _one_line_entries(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for line in text.splitlines():
        found = re.match(r"\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line)
        if found:
            yield found[1], [found[2]], found[3].split()


def _deb822_entries(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    plain = re.sub(r"(?m)^#.*\n?", "", text)
    for stanza in re.split(r"\n\s*\n", plain):
        # A line that begins with a space continues the field before it.
        pairs = re.findall(r"(?m)^([\w-]+):((?:.*)(?:\n[ \t]+.*)*)", stanza)
        fields = {key.lower(): value.split() for key, value in pairs}
        if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"])[0].lower() not in (
            "no",
            "false",
        ):
            for url in fields.get("uris", []):
                yield url, fields.get("suites", []), fields.get("components", [])


def _resolved(url: str) -> Iterable[str]:
    """Cloud images name a file with a list of mirrors; mmdebstrap wants one of them."""
    scheme, _, rest = url.partition(":")
    if scheme == "mirror+file":
        path = Path(urlsplit(url).path)
        lines = path.read_text().splitlines() if path.is_file() else []
        return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    return [url] if scheme in ("http", "https", "file") and rest else []


def apt_options() -> list[str]:
    """The host's proxies and TLS settings, as options for the apt of a build."""
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True)
    carried = re.compile(r'Acquire::(http|https)::\S+ "[^"]+";')
    return [line for line in done.stdout.splitlines() if carried.match(line)]


def network_environment() -> dict[str, str]:
    """The variables by which this machine reaches the network and PyPI: proxies, certificates, pip's settings.

    pip's configuration files are given as the variables that mean the same, so that none has to be copied.
    """
    certificates = {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}
    own = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith("PIP_") and name != "PIP_CONFIG_FILE")
        or name.lower().endswith("_proxy")
        or name in certificates
    }
    return {**_pip_settings(), **own}


def _pip_settings() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in _pip_config_files():
        parser = configparser.RawConfigParser()
        parser.read(path)
        for section in ("global", "install"):
            if parser.has_section(section):
                for key, value in parser.items(section):
                    found["PIP_" + key.upper().replace("-", "_")] = " ".join(value.split())
    return found


def _pip_config_files() -> list[Path]:
    """In pip's order, later ones win: the machine's, the user's, the one named by the environment."""
    home = Path.home()
    asked = os.environ.get("PIP_CONFIG_FILE")
    places = [
        *(
            Path(folder) / "pip/pip.conf"
            for folder in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
        ),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf",
        *([Path(asked)] if asked else []),
    ]
    return [place for place in places if place.is_file()]


def local_paths(texts: Iterable[str]) -> list[Path]:
    """Existing files and folders that are named in settings, as a path or as a file: URL; outermost ones only."""
    words = {word for text in texts for word in re.split(r"[\s=,]+", text)}
    paths = {Path(word.removeprefix("file://")) for word in words if word.startswith(("/", "file:///"))}
    found = sorted(path for path in paths if path.exists() and len(path.parts) > 2)
    return [path for path in found if not any(parent in found for parent in path.parents)]
