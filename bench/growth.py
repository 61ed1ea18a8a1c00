"""How cost grows: the points of each range, and the one number that says whether it is flat."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from bench import processes
from bench.contenders import Site

CONNECTIONS = (1, 8, 64, 512, 2_000)
STREAMS = ((100, 200), (800, 25), (5_000, 4))  # (open at once, events a second of each)
ORGS = (10, 100, 1_000, 10_000)
WORKERS = (1, 2)


def site(given: Site) -> Site:
    """The same site, with a core for each worker where the machine has as many again for the load."""
    apart = given.workers if len(os.sched_getaffinity(0)) >= 2 * given.workers else 1
    return replace(given, cores=processes.cores(apart)[0])


def worst(costs: Sequence[float]) -> float:
    """The largest ratio of a later cost to an earlier one; at most 1 if cost never grows. Needs one cost."""
    lowest, found = costs[0], 1.0
    for cost in costs:
        lowest = min(lowest, cost)
        found = max(found, cost / lowest)
    return found


def per_byte(costs: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Cost per call by body size → cost per byte, in a thousandth of the unit."""
    return [cost * 1e3 / size for cost, size in zip(costs, sizes, strict=True)]
