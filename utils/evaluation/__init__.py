"""Shared by the test scripts: opening a run, scoring its cases, writing the results down."""
