"""The arena: our method against tuned rivals, on equal terms, with error bars.

cells.py     what is trained: a task in one precision, and for how long
methods.py   how: rivals with their grids, ours, and ours with one part switched off
trials.py    one training run
store.py     what has been run already, one JSON line each
plan.py      which trials a report needs
report.py    what they say
"""
