"""Floor 0: the words everybody uses. Pure; imports nothing else of yugong."""
