"""--check: would a session start on this node?"""
