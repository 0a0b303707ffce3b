"""Errors a user can mend: what was wrong, what was given, what is allowed.

Scripts turn an `InputError` into one line on standard error and exit code 2 (`script_util.run_cli`);
any other exception is a defect of ours and keeps its traceback.
"""


class InputError(ValueError):
    """An argument, a configuration value or a request that cannot be served."""


class DataError(InputError):
    """A file or folder whose content is not what its name or its place promises."""
