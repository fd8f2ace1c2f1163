"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Wrong input: a bad option, a missing or damaged file, data that cannot be right.

    Its message is one line that says what is wrong, where, and what to do. Scripts print it and
    exit with status 2 (:func:`utils.run.main`); anything else that is raised is a bug and keeps its
    traceback.
    """
