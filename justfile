# Tasks of a contributor: `uv run just NAME`. `.ci/run` is everything that must hold before a change lands.

_default:
    @just --list

# style and types
check:
    ruff check .
    ruff format --check .
    mypy

# the quick test suite
test *arguments:
    pytest {{arguments}}

# tests on a real SLURM, started on this machine (root, Debian 12)
slurm:
    pytest -n 0 -m 'slurm and not full' --forbid-skips

# what the documentation says of commands, keys and grids
docs:
    pytest -n 0 tests/test_printed_commands.py tests/config/test_config.py

# the wheel, installed into an empty environment and used in another folder
wheel:
    pytest -n 0 -m slow tests/whole/test_wheel.py
