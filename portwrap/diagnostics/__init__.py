"""What users read when something fails: errors, causes and remedies."""
