"""
Errors that a user can cause or cure, each with the exit code it ends a command with.

::

    EdgeAppError            1   a bug, or nothing better known
    ├── InputError          2   bad input or usage: a path, a picture, an option
    ├── CameraError        69   the camera cannot serve (EX_UNAVAILABLE)
    ├── ConfigError        78   the configuration is wrong (EX_CONFIG)
    └── BundleError        78   the bundle is damaged, foreign or too new

A message is one sentence that says where, what, what was got and what was wanted.
"""

from __future__ import annotations


class EdgeAppError(Exception):
    """Base of all errors raised on purpose; its text is shown without a traceback."""

    exit_code = 1


class InputError(EdgeAppError, ValueError):
    """A path, picture or option that cannot be used."""

    exit_code = 2


class CameraError(EdgeAppError, RuntimeError):
    """A camera that cannot be opened or gives no frame."""

    exit_code = 69


class ConfigError(EdgeAppError, ValueError):
    """A configuration file that cannot be used."""

    exit_code = 78


class BundleError(EdgeAppError, ValueError):
    """A bundle that is missing, damaged, of a newer schema or does not fit together."""

    exit_code = 78
