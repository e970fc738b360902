"""Training scripts, one for each library's loop."""
