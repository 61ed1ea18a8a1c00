"""The emulator: an upstream as OpenAI and Anthropic are, with organisations, limits, faults and a journal.

It decides what such an upstream would answer. It knows nothing of the proxy and imports nothing of it, so that a
test that passes against it says something about the proxy and not about code the two share. `yugong demo`, the tests
and the benchmarks serve it.
"""

from yugong.emulator.server import Emulator
from yugong.emulator.spec import DEMO_KEY, EmulatorSpec, FaultRule, GroupSpec, Limits, OrgSpec
from yugong.emulator.text import count_tokens, expected_text, seed_of

__all__ = [
    "DEMO_KEY",
    "Emulator",
    "EmulatorSpec",
    "FaultRule",
    "GroupSpec",
    "Limits",
    "OrgSpec",
    "count_tokens",
    "expected_text",
    "seed_of",
]
