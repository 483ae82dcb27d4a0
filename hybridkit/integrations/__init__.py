"""hybridkit in other people's loops and tools, a file for each; imported where it is used, never before.

`transformers` and `lightning`: a callback for the Trainer of each; what these have in common is in `rules`.
`lm_eval`: our networks as a model of the evaluation harness. `folders`: saving as transformers does.
"""
