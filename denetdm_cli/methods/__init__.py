"""What is trained and how: one file a method, behind one contract."""
