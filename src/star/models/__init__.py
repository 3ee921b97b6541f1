"""Tokenizer, generator, sampler network and text encoders."""
