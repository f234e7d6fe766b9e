"""One definition of each cost number (docs/protocol.md), the same code for every method."""
