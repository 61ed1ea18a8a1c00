"""Floor 1: decisions. Pure: no waiting, clock, chance, environment, log or file; imports only base."""
