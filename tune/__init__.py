"""Searches over configuration keys on Ray Tune: each trial is a real run of `distributed`, a search ends in a plot."""
