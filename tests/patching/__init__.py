"""Tests of how a ViT is found and patched."""
