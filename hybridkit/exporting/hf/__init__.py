"""Network -> a folder that `from_pretrained` of transformers loads."""
