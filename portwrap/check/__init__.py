"""--check: facts about a node, a session to look at, and the report."""
