"""One module per script in jobs/: what the user types, and what the terminal shows."""
