"""The suites that ship with the harness; `harness run NAME` finds them here."""
