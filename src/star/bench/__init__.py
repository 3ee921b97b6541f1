"""How long sampling, decoding, training and reading take, part by part; no weights needed."""
