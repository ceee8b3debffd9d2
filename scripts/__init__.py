"""The doors: one command each."""
