"""The multi-scale residual VQ-VAE and what it is trained against."""
