"""What every model, and every file that a model wrote, says of itself."""

NOTICE = "Research use only; not a medical device."
