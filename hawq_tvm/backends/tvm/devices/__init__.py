"""Devices that compiled code is timed on: a process that talks to one, and what it is asked."""
