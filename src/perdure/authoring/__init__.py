"""The authoring API: steps, workflows, the context of a body, groups and flows."""
