"""Shared by tests: small models, the contract of adapters, golden tensors, ways to count and to compare."""
