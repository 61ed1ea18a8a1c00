"""Where a proxy's time goes: one benchmark's load, while `perf` or py-spy watches the busiest process of Yugong.

Not a measurement: watching costs time. Needs `py-spy` (a flame graph) or `perf` (counters, and the kernel's share).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

from bench import processes
from bench.session import Plan, Session

LOADS = {
    "unary": ("unary", "--connections", "64"),
    "streams": ("streams", "--connections", "800", "--pace", "50"),
    "bodies": ("unary", "--connections", "16", "--up", "1000000", "--down", "1000000"),
}
WATCH_SECONDS = 8
OUT = Path("profile.svg")


def run(what: str, plan: Plan) -> int:
    """Load Yugong (or what `--only` names first) with `what`; the profile goes to profile.svg or to stdout."""
    if what not in LOADS:
        print(f"profile: one of {', '.join(LOADS)}", file=sys.stderr)
        return 2
    with Session(plan, lambda line: print(line, file=sys.stderr)) as session, session.upstream() as site:
        name = (session.plan.only or ["yugong"])[0]
        with session.fleet([(name, name, site)]) as fleet:
            proxy = fleet[name]
            load = threading.Thread(
                target=session.load, args=(LOADS[what][0], proxy, *LOADS[what][1:], "--seconds", str(WATCH_SECONDS + 2))
            )
            load.start()
            _watch(_busiest(proxy.running.pid))
            load.join()
    return 0


def _busiest(root: int) -> int:
    """The process of the tree that works most, after it has had a moment to."""
    pids = processes.tree(root)
    before = processes.sample_cpu(pids)
    threading.Event().wait(1.5)
    after = processes.sample_cpu(pids)
    return max(pids, key=lambda pid: after[pid] - before[pid])


def _watch(pid: int) -> None:
    spy, perf = shutil.which("py-spy"), shutil.which("perf")
    if spy is not None:
        command = [spy, "record", "--native", "-d", str(WATCH_SECONDS), "-o", str(OUT), "-p", str(pid)]
    elif perf is not None:
        command = [perf, "record", "-g", "-o", "perf.data", "-p", str(pid), "--", "sleep", str(WATCH_SECONDS)]
    else:
        print("profile: neither py-spy nor perf is here", file=sys.stderr)
        return
    subprocess.run(command)
    if spy is None and perf is not None:
        subprocess.run(
            [perf, "report", "-i", "perf.data", "--stdio", "--no-children", "-g", "none", "--percent-limit", "0.7"]
        )
