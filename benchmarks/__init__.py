"""One file a subject; each prints a table and writes JSON. No limits on time are asserted here."""
