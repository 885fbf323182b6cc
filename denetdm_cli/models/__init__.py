"""Networks; they know no method."""
