"""Our method against tuned rivals, on equal terms, with error bars.

settings.py  what is trained: a task in one precision, and for how long
methods.py   how: rivals with their grids, ours, and ours with one part changed; custom.py: anybody's
trials.py    one training run; identity.py: what it is known by
store.py     what has been run already, one JSON line each
plan.py      which trials a report needs; suitable.py: which rivals a network does not suit
extras.py    what --full adds; longtail.py, teacher.py: the data and the teacher of it
run.py       runs what is missing
findings.py  what the trials say; numbers.py: beside what must be reached
report.py    as tables, JSON and a page; summary.py: as a part of the whole bench
"""
