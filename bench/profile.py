"""Where a proxy's time goes: one benchmark's load, while `perf` or py-spy watches the busiest process of Yugong.

Not a measurement: watching costs time. Needs py-spy (Python's functions and native ones) or perf (native only). The
stacks py-spy saw are left in the temporary directory, as flame graph programs read them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from bench import processes
from bench.session import Plan, Session

LOADS = {
    "unary": ("unary", "--connections", "64"),
    "streams": ("streams", "--connections", "800", "--pace", "50"),
    "bodies": ("unary", "--connections", "16", "--up", "1000000", "--down", "1000000"),
}
WATCH_SECONDS = 8
FRAME_OF_ALL = 0.95  # what is in nearly every stack says nothing
MOST = 45  # lines of each table
OUT = Path(tempfile.gettempdir()) / "bench-profile.txt"


def run(what: str, plan: Plan) -> int:
    """Load Yugong (or what `--only` names first) with `what`; the profile goes to stdout."""
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
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    perf = shutil.which("perf")
    if spy is not None:
        _spy(spy, pid)
    elif perf is not None:
        _perf(perf, pid)
    else:
        print("profile: neither py-spy nor perf is here", file=sys.stderr)


def _spy(spy: str, pid: int) -> None:
    command = [spy, "record", "--native", "--rate", "500", "-d", str(WATCH_SECONDS), "-f", "raw", "-o", str(OUT)]
    subprocess.run([*command, "-p", str(pid)], stdout=sys.stderr, stderr=subprocess.DEVNULL)
    own, total = Counter[str](), Counter[str]()
    for line in OUT.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        total.update(dict.fromkeys(frames, int(count)))
    samples = max(1, own.total())
    for title, counts in (("itself", own), ("with what it calls", total)):
        print(f"\n{title}")
        shares = [(frame, hits / samples) for frame, hits in counts.most_common() if hits < FRAME_OF_ALL * samples]
        for frame, share in shares[:MOST]:
            print(f"{share:7.1%}  {frame}")
    print(f"\nstacks: {OUT}", file=sys.stderr)


def _perf(perf: str, pid: int) -> None:
    file = str(OUT.with_suffix(".data"))
    subprocess.run([perf, "record", "-g", "-o", file, "-p", str(pid), "--", "sleep", str(WATCH_SECONDS)])
    subprocess.run([perf, "report", "-i", file, "--stdio", "--no-children", "-g", "none", "--percent-limit", "0.7"])
