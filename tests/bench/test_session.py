"""A run from end to end with the plain relay: figures come, and at its end nothing it started is left."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from bench import contenders, faults, processes, suites
from bench.processes import Running, StartError
from bench.session import LoadError, Plan, Session

SHORT = Plan(rounds=1, seconds=0.2, only=["relay"], quick=True)


def _silent(line: str) -> None:
    assert line


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.system
def test_a_run_leaves_figures_and_nothing_else() -> None:
    with Session(SHORT, _silent) as session:
        suites.unary(session)
        folder = session.folder
        assert folder.is_dir()
    figure = session.figures[0]
    assert (figure.benchmark, figure.contender, figure.unit, len(figure.values)) == ("unary", "relay", "µs/call", 1)
    assert figure.median > 0 and figure.detail("calls_per_s") > 0 and figure.detail("busy_first") > 0
    assert not folder.exists()
    assert [pid for pid in processes.tree(os.getpid()) if _is_there(pid)] == [os.getpid()]


@pytest.mark.system
def test_tls_upstream_is_checked_and_reached() -> None:
    with Session(SHORT, _silent) as session:
        suites.tls(session)
    assert session.figures[0].median > 0


@pytest.mark.system
@pytest.mark.skipif("nginx" not in contenders.available(), reason="nginx is not here")
def test_nginx_carries_calls_and_streams() -> None:
    plan = Plan(1, 0.2, ["nginx"])
    with Session(plan, _silent) as session, session.upstream() as site, session.side_by_side(site) as fleet:
        assert session.load("unary", fleet["nginx"])["errors"] == 0
        sample = session.load("streams", fleet["nginx"], "--connections", "8", "--events", "5", "--pace", "200")
        assert sample["events"] > 0
        assert "worker" in fleet["nginx"].roles().values()


@pytest.mark.system
def test_yugong_is_started_as_shipped() -> None:
    plan = Plan(1, 0.3, ["yugong"])
    with Session(plan, _silent) as session, session.upstream() as site, session.side_by_side(site) as fleet:
        assert session.failed == []
        assert session.load("unary", fleet["yugong"])["errors"] == 0
        assert {"worker", "keeper"} <= set(fleet["yugong"].roles().values())
        assert session.load("streams", fleet["yugong"], "--connections", "8", "--events", "5")["events"] > 0


@pytest.mark.system
def test_faults_are_injected_and_counted(tmp_path: Path) -> None:
    verdict = uvloop.run(faults.kind("500", tmp_path / "500", 300))
    assert verdict.calls == 300 and verdict.served + sum(verdict.others.values()) == 300
    assert verdict.struck > 10
    assert verdict.attempts >= 300 and "wrong body" not in verdict.others


@pytest.mark.system
def test_failed_calls_are_no_figure() -> None:
    with Session(SHORT, _silent) as session, session.upstream() as site:
        dead = replace(site, upstream_port=processes.free_port())
        with session.side_by_side(dead) as fleet, pytest.raises(LoadError, match="500"):
            session.load("unary", fleet["relay"])


@pytest.mark.system
def test_a_group_is_stopped_whole(tmp_path: Path) -> None:
    child = "import subprocess, sys, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"
    with Running("parent", [sys.executable, "-c", child], tmp_path / "log") as running:
        until = time.monotonic() + 10
        while len(family := processes.tree(running.pid)) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(family) == 2
    assert [pid for pid in family if _is_there(pid)] == []


def test_who_ends_at_once_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no port left')"]
    with Running("broken", command, tmp_path / "log") as running, pytest.raises(StartError, match="no port left"):
        running.wait_ready(processes.free_port())


@pytest.mark.system
def test_an_interrupted_run_leaves_nothing() -> None:
    command = [sys.executable, "-m", "bench", "unary", "--only", "relay", "--seconds", "30"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        until = time.monotonic() + 20
        while len(family := processes.tree(run.pid)) < 4 and time.monotonic() < until:  # upstream, relay, load
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 130
    assert len(family) >= 4
    assert [pid for pid in family if _is_there(pid)] == []


def test_processor_time_is_counted() -> None:
    before, until = processes.cpu_ns(os.getpid()), time.process_time() + 0.02
    while time.process_time() < until:
        pass
    assert 0.02e9 <= processes.cpu_ns(os.getpid()) - before < 2e9
    assert processes.cpu_ns(2**22 - 1) == 0


def test_load_and_proxy_do_not_share_a_core_where_there_are_two() -> None:
    proxy, load = processes.cores()
    assert len(proxy) == 1
    assert not proxy & load or len(os.sched_getaffinity(0)) == 1
