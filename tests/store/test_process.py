"""What this process was started with is there again after a block that changed it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from transfergrid.store.process import temporary_environment


def test_inside_there_are_these_variables_and_arguments_alone_and_afterwards_the_old_ones() -> None:
    before, typed = dict(os.environ), list(sys.argv)
    with pytest.raises(KeyError), temporary_environment({"ONE": "1"}, arguments=["script", "a=1"]):
        assert dict(os.environ) == {"ONE": "1"} and sys.argv == ["script", "a=1"]
        os.environ["TWO"] = "2"  # a library's own
        in_a_child = subprocess.run(["/usr/bin/env"], capture_output=True, text=True).stdout.splitlines()
        assert {"ONE=1", "TWO=2"} <= set(in_a_child) and not any(line.startswith("PATH=") for line in in_a_child)
        raise KeyError
    assert dict(os.environ) == before and sys.argv == typed


def test_without_arguments_those_that_were_typed_stay() -> None:
    typed = sys.argv
    with temporary_environment(os.environ | {"ONE": "1"}):
        assert sys.argv is typed and os.environ["ONE"] == "1" and "PATH" in os.environ
    assert "ONE" not in os.environ
