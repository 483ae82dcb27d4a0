"""hybridkit in other people's loops and tools, a file for each; imported where it is used, never before.

`transformers`: a callback for its Trainer. `lightning`: a callback for its Trainer. `lm_eval`: our networks as
a model of the evaluation harness. What the first two have in common is in `rules`.
"""
