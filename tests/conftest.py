"""What every test stands on: the program's own event loop, no task left behind, one budget for generated examples.

Fixtures for one floor live in that floor's own conftest.py.
"""

import asyncio
import inspect
import os
import sys
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path

import hypothesis
import pytest
import uvloop

import yugong

ROOT = Path(__file__).resolve().parents[1]
GRACE = 1.0
"""Seconds a cancelled or ending task is given to be gone before it counts as leaked."""

# Processes that a test starts are of the Yugong that it imports itself: the sources, or what is installed and compiled.
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, [Path(yugong.__file__).parents[1], ROOT]))
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

hypothesis.settings.register_profile("house", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "fuzz",
    deadline=None,
    print_blob=True,
    max_examples=int(os.environ.get("YUGONG_FUZZ") or 1_000_000),
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("fuzz" if os.environ.get("YUGONG_FUZZ") else "house")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests wait on uvloop, as the program does."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every waiting test is watched for tasks; first in, so that it is torn down after the test's own fixtures."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.fixturenames.insert(0, "no_task_left")


NOT_WITH_COMPILED = (
    "interpreted classes cannot inherit from compiled",
    "expected, got builtin_function_or_method",  # inspect.getsource()
)
"""What Python says to a test that makes an heir of a compiled class, or reads the source of a compiled function."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Such a test is one for the sources only, where it runs as well."""
    try:
        yield
    except TypeError as error:
        if not sys.flags.safe_path or not str(error).endswith(NOT_WITH_COMPILED):
            raise
        pytest.skip(f"for the sources only: {error}")


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    """Fails a test that leaves a task running: in the program that would be memory that never comes back."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=GRACE)
    if left:
        pytest.fail(f"tasks left running: {sorted(map(repr, left))}")
