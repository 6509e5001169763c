"""The pure core: decides what happens, and does nothing. No clock, I/O, thread, log or randomness in here."""
