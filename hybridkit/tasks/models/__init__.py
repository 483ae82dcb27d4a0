"""The default models of the built-in tasks: plain torch modules."""
