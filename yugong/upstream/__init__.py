"""Floor 2: the leg out. Connections and one exchange over them; knows no store."""
