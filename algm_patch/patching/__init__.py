"""The machine inside a patched model."""
