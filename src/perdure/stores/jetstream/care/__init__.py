"""Maintenance: the janitor, overdue schedules, idle consumers, retention."""
