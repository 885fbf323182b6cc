"""How good a method is: pure metrics, one pass that measures all of them, and the rules of selection."""
