"""Tests of the adapters, library by library, and of the contract that all of them meet."""
