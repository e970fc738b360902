"""A patched model's own report: text, card, cost."""
