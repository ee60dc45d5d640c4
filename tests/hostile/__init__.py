"""Hostile and broken input: a module for each format, whose kinds `test_hostile` runs."""

from hostile import bundles as bundles
from hostile import configs as configs
from hostile import jsonl as jsonl
from hostile import pictures as pictures
from hostile import predictions as predictions
from hostile import runs as runs
from hostile import shards as shards
from hostile import stem as stem
from hostile import weights as weights
