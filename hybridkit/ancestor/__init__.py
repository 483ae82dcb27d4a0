"""The interface of hybridkit's ancestor: its names, arguments and keys, over the parts of today."""
