"""Who runs: each contender is a way to start one proxy before one upstream, all it writes under one folder.

nginx is the limit, the plain relay the yardstick, Yugong the product as shipped: what is installed, started by
`python -P -m yugong run --config FILE` with metrics and access log on. LiteLLM and Portkey join where `bench.peers` has
installed them. Knows nothing of what is measured.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import processes
from bench.processes import Running

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "bench" / ".peers"
PEER_NAMES = ("litellm", "portkey")
KEYS_PER_ORG = 3
START_SECONDS = 120.0  # of settings with 10 000 orgs, or of a peer that loads half of PyPI
CUSTOMER_KEY = "sk-bench-0123456789abcdef0123456789abcdef0123456789ab"
UPSTREAM_NAME = "localhost"  # the name in the run's certificate


@dataclass(slots=True)
class Site:
    """Where a contender stands: its folder, its upstream, its share of the machine."""

    folder: Path
    upstream_port: int
    ca: Path | None = None  # set: the upstream speaks TLS, trusted by this certificate
    orgs: int = 10
    workers: int = 1
    cores: set[int] = field(default_factory=lambda: processes.cores()[0])

    @property
    def upstream_url(self) -> str:
        """Base URL of the upstream."""
        scheme, host = ("https", UPSTREAM_NAME) if self.ca else ("http", "127.0.0.1")
        return f"{scheme}://{host}:{self.upstream_port}"


@dataclass(slots=True)
class Proxy:
    """A started contender."""

    name: str
    running: Running
    port: int
    admin_port: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)  # what it needs in a request besides the SDK's

    def stop(self) -> None:
        """End it and all its processes."""
        self.running.stop()

    def roles(self) -> dict[int, str]:
        """Its processes by what they do: the first is the supervisor, and so on as the command lines tell."""
        pids = processes.tree(self.running.pid)
        return {pid: _role(pid, pid == self.running.pid) for pid in pids}


def _role(pid: int, first: bool) -> str:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "gone"
    words = {word.strip("_") for word in line.split()}
    for role in ("keeper", "worker", "master", "emulator"):
        if role in words:
            return role
    return "first" if first else "child"


_NGINX = """\
worker_processes {workers};
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_rlimit_nofile 20000;
events {{ worker_connections 16000; multi_accept on; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_body_buffer_size 1m;
    client_max_body_size 1g;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    tcp_nodelay on;
    upstream pool {{
        server 127.0.0.1:{upstream_port};
        keepalive 6000;
        keepalive_requests 1000000000;
        keepalive_timeout 600s;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass {scheme}://pool;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host {host};
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 600s;
{tls}        }}
    }}
}}
"""
_NGINX_TLS = """\
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {ca};
            proxy_ssl_name {host};
            proxy_ssl_server_name on;
            proxy_ssl_session_reuse on;
            proxy_ssl_protocols TLSv1.2 TLSv1.3;
"""


def start_nginx(site: Site) -> Proxy:
    """nginx `proxy_pass`: HTTP/1.1 and keep-alive upstream, unbuffered, no access log."""
    port = processes.free_port()
    host = UPSTREAM_NAME if site.ca else "127.0.0.1"
    tls = _NGINX_TLS.format(ca=site.ca, host=host) if site.ca else ""
    conf = site.folder / "nginx.conf"
    conf.write_text(
        _NGINX.format(
            workers=site.workers,
            folder=site.folder,
            upstream_port=site.upstream_port,
            port=port,
            scheme="https" if site.ca else "http",
            host=host,
            tls=tls,
        )
    )
    command = [shutil.which("nginx") or "/usr/sbin/nginx", "-e", str(site.folder / "error.log"), "-c", str(conf)]
    return _started("nginx", Running("nginx", command, site.folder / "nginx.log", cores=site.cores), port)


def start_relay(site: Site) -> Proxy:
    """The 40-line aiohttp relay."""
    port = processes.free_port()
    command = [sys.executable, "-m", "bench.relay", "--port", str(port), "--upstream", site.upstream_url]
    env = {"SSL_CERT_FILE": str(site.ca)} if site.ca else {}
    return _started(
        "relay", Running("relay", command, site.folder / "relay.log", cores=site.cores, env=env, cwd=ROOT), port
    )


def yugong_settings(site: Site) -> dict[str, object]:
    """The settings of a Yugong before one upstream: `site.orgs` organisations of three keys, one customer."""
    origin: dict[str, object] = {"dialect": "openai", "url": site.upstream_url, "private": True}
    origin["max_connections"] = 20_000
    if site.ca:
        origin["ca_file"] = str(site.ca)
    return {
        "listen": {"workers": site.workers},
        "origins": {"bench": origin},
        "orgs": {f"org{org:05d}": {"origin": "bench", "keys": _upstream_keys(org)} for org in range(site.orgs)},
    }


def _upstream_keys(org: int) -> list[dict[str, object]]:
    secrets = [f"sk-up-{org:05d}-{key}-0123456789abcdef0123456789" for key in range(KEYS_PER_ORG)]
    return [{"id": f"key{at}", "secret": {"value": secret}} for at, secret in enumerate(secrets)]


def start_yugong(site: Site) -> Proxy:
    """Yugong as shipped, everything on."""
    return launch_yugong(site.folder, yugong_settings(site), site.cores)


def launch_yugong(folder: Path, settings: dict[str, Any], cores: set[int] | None = None) -> Proxy:
    """Start Yugong with `settings`, to which addresses, a data directory and the customer are added."""
    port, admin_port = processes.free_port(), processes.free_port()
    listen = {"address": f"127.0.0.1:{port}", "admin": f"127.0.0.1:{admin_port}"}
    own = {
        "listen": {**settings.get("listen", {}), **listen},
        "data_dir": str(folder / "data"),
        "drain": {"lame_duck": 0, "grace": 1},  # a run that is over waits for nobody
        "log": {"access": str(folder / "access.log")},
        "accounts": {"bench": {"keys": [{"id": "app", "value": CUSTOMER_KEY}]}},
    }
    file = folder / "yugong.yaml"
    file.write_text(json.dumps({**settings, **own}, indent=1))  # JSON is YAML
    file.chmod(0o600)
    # -P: what is installed, which is compiled, and not the tree that this runs in
    command = [sys.executable, "-P", "-m", "yugong", "run", "--config", str(file)]
    running = Running("yugong", command, folder / "yugong.log", cores=cores, cwd=ROOT)
    return _started("yugong", running, port, "/readyz", admin_port)


def start_litellm(site: Site) -> Proxy:
    """LiteLLM's proxy, one worker, no database."""
    port = processes.free_port()
    conf = site.folder / "litellm.yaml"
    model = {"model": "openai/gpt-4o-2024-08-06", "api_base": f"{site.upstream_url}/v1", "api_key": "sk-up"}
    models = [{"model_name": "gpt-4o-2024-08-06", "litellm_params": model}]
    conf.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": CUSTOMER_KEY}}))
    command = [str(PEERS / "litellm/bin/litellm"), "--config", str(conf), "--host", "127.0.0.1", "--port", str(port)]
    env = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    running = Running("litellm", command, site.folder / "litellm.log", cores=site.cores, env=env)
    return _started("litellm", running, port, "/health/liveliness")


def start_portkey(site: Site) -> Proxy:
    """Portkey's gateway. It takes the upstream from headers of the call."""
    port = processes.free_port()
    command = [
        "node",
        str(PEERS / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"),
        "--headless",
        f"--port={port}",
    ]
    running = Running("portkey", command, site.folder / "portkey.log", cores=site.cores, env={"PORT": str(port)})
    proxy = _started("portkey", running, port)
    proxy.headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{site.upstream_url}/v1"}
    return proxy


def _started(name: str, running: Running, port: int, path: str = "", admin_port: int = 0) -> Proxy:
    try:
        running.wait_ready(port, path, START_SECONDS)
    except BaseException:
        running.stop()
        raise
    return Proxy(name, running, port, admin_port)


STARTERS: Mapping[str, Callable[[Site], Proxy]] = {
    "nginx": start_nginx,
    "relay": start_relay,
    "yugong": start_yugong,
    "litellm": start_litellm,
    "portkey": start_portkey,
}


def available() -> list[str]:
    """The contenders that can be started on this machine, in the order of a round."""
    here = {
        "nginx": shutil.which("nginx") is not None or os.access("/usr/sbin/nginx", os.X_OK),
        "relay": True,
        "yugong": (ROOT / "yugong" / "__main__.py").exists(),
        "litellm": (PEERS / "litellm/bin/litellm").exists(),
        "portkey": (PEERS / "portkey/node_modules/@portkey-ai/gateway").exists(),
    }
    return [name for name, is_here in here.items() if is_here]
