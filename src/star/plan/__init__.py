"""What a training will take, before it begins: `python -m star.plan --help`."""
