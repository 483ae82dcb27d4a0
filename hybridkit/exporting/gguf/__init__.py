"""GGUF: files for llama.cpp and what is built on it.

Blocks hold our codes as they are, and scales in fp16. llama.cpp quantises activations in a way of its own, so
that its answers are not ours bit for bit.
"""
