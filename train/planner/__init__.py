"""What ``--dry-run`` says: memory, disk and time of a training, by arithmetic."""
