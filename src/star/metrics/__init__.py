"""Scores of images: what they look like and whether they show what their prompts say."""
