"""Floor 3: the line a call travels, from the listener to the relay of its answer."""
