"""Run directories: every file of a run, what it holds, and what is told of it."""
