"""What must survive: safe writing, claims and attempts, records, feature files."""
