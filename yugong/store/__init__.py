"""Floor 2: keeping. Files and databases; knows nothing of the leg out."""
