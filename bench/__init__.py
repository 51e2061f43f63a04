"""Benchmarks: our program and its peers, side by side in one run, because only ratios mean anything.

Absolute figures move by a factor of two with the load of a machine; contestants of one benchmark therefore take turns,
round by round. Nothing here is part of the program: it imports the program, the tests' image builders, and nobody
imports it. Run it by `make bench`.
"""
