"""What a patched model tells of itself."""
