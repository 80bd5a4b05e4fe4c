"""Training: `IT3Trainer`, its arguments and what they fill in."""
