"""What came out: scores, records, aggregates, tables, plots, and the figures of the paper."""
