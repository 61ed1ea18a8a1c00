"""`python -m bench`: run everything, or one thing in twenty seconds.

python -m bench                      everything, into bench/RESULTS.md and bench/results.json
python -m bench --peers              the same beside LiteLLM and Portkey, installed on first use
python -m bench unary --quick --only nginx,yugong
python -m bench profile unary
python -m bench.soak --minutes 30
python -m bench.faults --calls 10000
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from bench import report
from bench.contenders import available
from bench.processes import StartError
from bench.session import LoadError, Plan, Session
from bench.suites import SUITES

RESULTS = Path(__file__).parent / "RESULTS.md"


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("what", nargs="?", default="run", choices=["run", "profile", *SUITES])
    options.add_argument("of", nargs="?", default="unary", help="what to profile")
    options.add_argument("--rounds", type=int, help="rounds of each contender (5; with --quick 3)")
    options.add_argument("--seconds", type=float, help="length of a measured window (3; with --quick 1)")
    options.add_argument(
        "--only", default="", help="contenders, separated by commas, of nginx, relay, yugong, litellm, portkey"
    )
    options.add_argument("--skip", default="", help="benchmarks `run` leaves out, separated by commas")
    options.add_argument("--quick", action="store_true", help="short and rough, to tune by")
    options.add_argument(
        "--peers", action="store_true", help="also LiteLLM and Portkey; installs them if they are not here"
    )
    options.add_argument("--out", type=Path, help="write the report here, and results.json beside it")
    return options


def _plan(given: argparse.Namespace) -> Plan:
    rounds = given.rounds or (3 if given.quick else 5)
    seconds = given.seconds or (1.0 if given.quick else 3.0)
    return Plan(rounds, seconds, [name for name in given.only.split(",") if name], given.quick, given.peers)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _measure(given: argparse.Namespace) -> int:
    skipped = given.skip.split(",")
    wanted = [name for name in SUITES if name not in skipped] if given.what == "run" else [given.what]
    machine = report.machine()
    _say(f"contenders: {', '.join(available())}; {machine['busy_before']} of the machine busy before the run")
    with Session(_plan(given), _say) as session:
        for name in wanted:
            start = time.monotonic()
            try:
                SUITES[name](session)
            except (LoadError, StartError) as error:
                session.fail(error)
            _say(f"-- {name}: {time.monotonic() - start:.0f} s")
        made = report.make(session.figures, machine, session.failed)
    if given.out:
        report.write(made, given.out)
    print(made.text if given.what == "run" else made.brief)
    return 1 if session.failed else 0


def main() -> int:
    """Run what the arguments name. 0: all of it was measured (whatever the bars say); 1: something could not be."""
    signal.signal(signal.SIGTERM, _interrupt)
    given = _options().parse_args()
    if given.what == "run" and not given.out and not given.quick:
        given.out = RESULTS
    if given.peers:
        from bench import peers

        peers.install()
    if given.what == "profile":
        from bench import profile

        return profile.run(given.of, _plan(given))
    return _measure(given)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        _say("stopped")
        sys.exit(130)
