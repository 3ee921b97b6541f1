"""From nothing to pictures with scores, by the same commands that a real training uses: `python -m star.demo`."""
