"""The supervisor: holds what outlives workers (listening sockets, shared memory, settings) and keeps them alive.

    child      one process: how it is started, heard and sent off
    plan       which processes to start, drain or end now: pure
    source     where the settings come from, the first run's own included
    crew       the children, kept as the plan says
    entry      the listening sockets that settings ask for
    upgrade    its own replacement, with everything handed on
    chief      signals, reloads, the end
    exits      exit codes
    birth      everything that must stand before the first child is started

It carries no call and opens no key; nothing a client sends reaches it.
"""
