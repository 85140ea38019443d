"""The nouns of a grid, frozen, and their identities.

A field stands in RunSpec if and only if it changes the numbers beyond rounding; where and how a run is carried out
(device, workers, folders, partition, W&B mode) stands in Runtime. So an identity is a hash over *all* fields, never
over a difference from some default, and there is no list of fields to leave out. The one exception keeps
old names true: a field that a later release added (`later`) is left out of the hash, and of stored files, at the value
that stands for what the release before did. So older records are read as what they were, and feature files of equal
bytes keep their key.

Others import from here. declared: how a field says what it means. identity: dataclasses as JSON and as hashes.
inputs: networks and data. settings: those of each phase. runs: RunSpec and Runtime.
"""

# All public nouns of the five modules are the vocabulary: naming each here again would only be a second list.
# ruff: noqa: F403
from transfergrid.specs.declared import *
from transfergrid.specs.identity import *
from transfergrid.specs.inputs import *
from transfergrid.specs.runs import *
from transfergrid.specs.settings import *
