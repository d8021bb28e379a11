"""What is on disk: bytes <-> values. ``spec`` is the specification."""
