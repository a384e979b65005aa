"""What a run looks like: inspect, report, extract."""
