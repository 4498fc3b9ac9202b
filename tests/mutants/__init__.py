"""Small patches that break the code; `python -m tests.mutants` requires each to fail its test.

A mutant is a TOML file: `law`, `why`, `file`, `old` (occurs exactly once), `new`, `test`.
"""
