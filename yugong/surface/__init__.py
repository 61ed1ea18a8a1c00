"""Floor 4: what people see: metrics, administration, console."""
