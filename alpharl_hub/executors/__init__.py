"""Who does the work: one worker per device, on this machine."""
