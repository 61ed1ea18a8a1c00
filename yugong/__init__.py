"""Yugong: a reverse proxy that speaks the OpenAI API, in front of a pool of upstream keys.

Nothing is imported here, so that any part may be read without the rest; `yugong.__main__` starts the program.
"""

__version__ = "0.1.0"
