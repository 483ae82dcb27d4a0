"""Tasks of pretrained language networks: next tokens, masked tokens, classes and embeddings of text."""
