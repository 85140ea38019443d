"""From records to rows, tests and answers."""
