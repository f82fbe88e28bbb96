"""Measures batchspawner-portwrap beside what a site could use instead."""
