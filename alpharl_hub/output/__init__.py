"""What is written: shards in place, a journal to go on from, a folder that appears at the end."""
