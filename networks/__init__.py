"""One architecture a file, plain constructors; every network keeps its constructor's arguments in ``config``."""
