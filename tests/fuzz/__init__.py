"""Readers of files that nobody should trust, under mutations of small valid files.

A reader returns, or raises one of the project's own errors; never anything else, never slowly, never with much memory.
``test_fuzz.py`` asks that of a few thousand inputs a reader, ``python -m tests.fuzz`` of as many as one likes.

=============  ==================================================================
``mutations``  from a string of bytes to a damaged file, the same one every time
``readers``    every reader, with the valid files that it begins with
``judge``      one input: what came of it
=============  ==================================================================
"""
