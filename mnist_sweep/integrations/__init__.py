"""Callbacks that report to the sweep from the training loops of other libraries.

Each module imports its library, so import only the module of a library that is installed.
"""
