"""Data, training, studies, reports and the command line: applications that import the library as users do.

The library imports nothing from here. Install the extra `study` to use it.
"""
