"""Routing: a fast model answers, or defers to a tool that costs more."""
