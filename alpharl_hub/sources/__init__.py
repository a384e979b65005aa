"""Where checkpoints come from: folders on this machine, repos on a Hub."""
