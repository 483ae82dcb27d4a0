"""Learning from a teacher: its logits, hidden states, attention relations and embeddings.

`terms.py` says what is learned, `losses.py` how it is measured, `layers.py` which layers of the two networks
go together, `watching.py` sees them run, `teaching.py` joins all that, `teacher.py` checks the teacher,
`projection.py` joins widths, `progressive.py` goes block by block.
"""
