"""What ``--dry-run`` prints: memory, disk space and time of a training, by arithmetic."""
