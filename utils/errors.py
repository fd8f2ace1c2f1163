"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Wrong input: a bad option, a missing or damaged file, data that cannot be right.

    Its message is one line that says what is wrong, where, and what to do. Scripts print it and
    exit with status 2 (`utils.command.run`); any other exception is a bug and keeps its traceback.
    """
