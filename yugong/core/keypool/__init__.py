"""Which key serves a call: buckets, health, selection, queue. Pure, as all of floor 1."""
