"""What each function does: one file per job, over ports."""
