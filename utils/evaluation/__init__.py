"""What the test scripts share: opening a run, scoring its cases, writing the results down."""
