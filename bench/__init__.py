"""The benchmarks: processor time, memory and latency of Yugong beside nginx and a plain aiohttp relay.

The harness starts every part as a process of its own and talks to Yugong only over its sockets and its settings file:
it imports nothing of `yugong`, so that what is measured is what is shipped.
"""
