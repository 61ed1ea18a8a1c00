"""LiteLLM and Portkey, each in a place of its own under bench/.peers, so that nothing of them meets what we ship."""

from __future__ import annotations

import shutil
import subprocess
import sys

from bench.contenders import PEERS


def install() -> None:
    """Install what is missing; says on stderr what could not be."""
    PEERS.mkdir(exist_ok=True)
    venv, portkey = PEERS / "litellm", PEERS / "portkey"
    if not (venv / "bin/litellm").exists():
        made = _run(sys.executable, "-m", "venv", str(venv))
        _ = made and _run(str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "litellm[proxy]")
    if not (portkey / "node_modules/@portkey-ai/gateway").exists():
        portkey.mkdir(exist_ok=True)
        npm = shutil.which("npm")
        if npm is None:
            print("portkey: npm is not here", file=sys.stderr)
        else:
            _run(npm, "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(portkey), "@portkey-ai/gateway")


def _run(*command: str) -> bool:
    ran = subprocess.run(command, stdout=sys.stderr, stderr=sys.stderr)
    if ran.returncode:
        print(f"{command[0]} … {command[-1]}: failed ({ran.returncode})", file=sys.stderr)
    return ran.returncode == 0
