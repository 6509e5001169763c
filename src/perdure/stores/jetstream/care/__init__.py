"""What keeps a store healthy: the janitor, overdue schedules, retention."""
