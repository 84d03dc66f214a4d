"""Every file of a run, mutated: refused in one sentence, or read for what it says. `make fuzz` runs it."""
