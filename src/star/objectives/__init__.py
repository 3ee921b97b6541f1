"""What is minimised: plain torch, no Lightning."""
