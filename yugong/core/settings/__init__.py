"""Settings: one YAML file, read strictly, with the environment over it.

Decides: what can be set, how it is written, and what is refused (all of it at once, with places and suggestions). Must
not know: where the file lies, who reads the settings, what a secret's value is. Pure: text in, records or problems out.

    records    every setting with its kind, default, range and meaning
    tree       YAML text to nodes with places
    kinds      single values: durations, sizes, networks …
    shapes     nodes to records, by the table
    overlay    environment variables into the tree
    rules      what must hold between settings
    reading    the order of all this
    showing    settings as text again, and what changed between two
    schema     the table as JSON Schema
    globs      patterns with *
    routes     which time-outs a call has
"""

from yugong.core.settings.problems import Place, Problem
from yugong.core.settings.reading import Loaded, read_settings
from yugong.core.settings.records import (
    Account,
    AccountLimits,
    CustomerKey,
    Drain,
    Egress,
    Intake,
    Limit,
    Listen,
    Log,
    Metrics,
    Models,
    Org,
    OrgKey,
    Origin,
    Relay,
    Retry,
    Route,
    SecretRef,
    Settings,
    TimeoutOverrides,
    Timeouts,
)

__all__ = [
    "Account",
    "AccountLimits",
    "CustomerKey",
    "Drain",
    "Egress",
    "Intake",
    "Limit",
    "Listen",
    "Loaded",
    "Log",
    "Metrics",
    "Models",
    "Org",
    "OrgKey",
    "Origin",
    "Place",
    "Problem",
    "Relay",
    "Retry",
    "Route",
    "SecretRef",
    "Settings",
    "TimeoutOverrides",
    "Timeouts",
    "read_settings",
]
