"""Results read back: compared, tested, tabulated, drawn, exported."""
