"""What goes wrong: models that misbehave, processes that are killed, names and files that are hostile."""
