"""Records -> statistics, tables, figures. Nothing in here trains, and nothing in here needs torch."""
