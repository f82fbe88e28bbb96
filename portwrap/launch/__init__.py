"""The process that becomes the command. Read `story.py` first."""
