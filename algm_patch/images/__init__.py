"""Images: read from files, found in folders, made a model's input."""
