"""What authors of workflows write with: steps, workflows, the context of a body, groups and flows."""
