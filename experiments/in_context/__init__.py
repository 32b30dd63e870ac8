"""Episodes in which a model learns from its prompt, and batches of them in stages."""
