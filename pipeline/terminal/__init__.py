"""What a person sees of a run, and how commands answer."""
