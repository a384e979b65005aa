"""From a finished folder, or shards as they are made, to one commit on a Hub."""
