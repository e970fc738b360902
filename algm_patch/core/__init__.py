"""The method on plain tensors."""
