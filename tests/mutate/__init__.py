"""Mutation testing: small faults are put into the sources one at a time, and the tests must notice each.

``python -m tests.mutate --part core`` says which faults no test noticed. `operators` lists the kinds of fault, and what
is left out and why; `judges` says which tests judge which files; `forks` runs every mutant in a process of its own, so
that the user's tree is never written to; `accepted.toml` names the survivors that no test can notice, with reasons.
"""
